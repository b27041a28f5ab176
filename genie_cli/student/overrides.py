"""Bits that a user gives to single layers, over what the protocol says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from genie_cli.errors import UsageError, nearest

WeightAndInput = tuple[int, int | None]
"""Bits of a layer's weight and of its input; None: the input stays in float."""


def layer_bits(layers: Sequence[str], overrides: Mapping[str, WeightAndInput]) -> dict[str, WeightAndInput]:
    """Layer name -> its overridden weight and input bits, where a pattern matches; later patterns win.

    Raises:
        UsageError: a pattern that matches no layer.
    """
    chosen: dict[str, WeightAndInput] = {}
    for pattern, bits in overrides.items():
        matched = [name for name in layers if fnmatchcase(name, pattern)]
        if not matched:
            hint = nearest(pattern, layers) or " `genie inspect MODEL` lists the layers."
            raise UsageError(f"The bits override {pattern!r} matches no layer of the network.{hint}")
        chosen.update(dict.fromkeys(matched, bits))
    return chosen
