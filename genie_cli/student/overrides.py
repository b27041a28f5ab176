"""Bits that a user gives to single layers and sites, over what the protocol says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from genie_cli.config.bit_table import BitTable
from genie_cli.errors import UsageError, nearest

WeightAndInput = tuple[int, int | None]
"""Bits of a layer's weight and of its input; None: the input stays in float."""


def layer_bits(layers: Sequence[str], overrides: Mapping[str, WeightAndInput]) -> dict[str, WeightAndInput]:
    """Layer name -> its overridden weight and input bits, where a pattern matches; later patterns win.

    Raises:
        UsageError: a pattern that matches no layer.
    """
    return _matched(overrides, layers, "The bits override {!r} matches no layer of the network.", "layers")


def table_bits(
    table: BitTable, layers: Sequence[str], sites: Sequence[str]
) -> tuple[dict[str, int], dict[str, int | None]]:
    """Layer -> weight bits and site -> activation bits, where a name or pattern of the table matches.

    Raises:
        UsageError: a name that matches no layer, or no activation site.
    """
    told = "The table of bits names the {} {{!r}}, and the network has no such one."
    weights = _matched(table.weights, layers, told.format("layer"), "layers")
    return weights, _matched(table.activations, sites, told.format("activation site"), "activation sites")


BitsT = TypeVar("BitsT")


def _matched(given: Mapping[str, BitsT], names: Sequence[str], message: str, what: str) -> dict[str, BitsT]:
    """Name -> what the last pattern that matches it gives; `message` has a place for a pattern that matches none."""
    chosen: dict[str, BitsT] = {}
    for pattern, bits in given.items():
        matched = [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            hint = nearest(pattern, names) or f" `genie inspect MODEL` lists the {what}."
            raise UsageError(message.format(pattern) + hint)
        chosen.update(dict.fromkeys(matched, bits))
    return chosen
