"""A table of bits: weights by layer, activations by site; as a search writes it and people edit it.

As a file (``bits.yaml``)::

    weights:
      conv1: 8
      layer1.0.conv1: 3
    activations:
      layer1.0.conv1.input: 4
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from genie_cli.config.base import Frozen
from genie_cli.errors import InputError

MIN_BITS, MAX_BITS, MAX_ACTIVATION_BITS = 2, 8, 16
TABLE_SUFFIXES = (".yaml", ".yml")


def read_bits(value: Any) -> Any:
    """The bits of activations as they were written: a number, or ``none``."""
    text = value.strip().lower() if isinstance(value, str) else ""
    return None if text == "none" else int(text) if text.isascii() and text.isdigit() else value


WeightBits = Annotated[int, Field(ge=MIN_BITS, le=MAX_BITS)]
ActivationBits = Annotated[
    Annotated[int, Field(ge=MIN_BITS, le=MAX_ACTIVATION_BITS)] | None, BeforeValidator(read_bits)
]
"""Bits of activations; None, also written as ``none``: they stay in float."""


class BitTable(Frozen):
    """Bits of single weights and activations, over what protocol and overrides say.

    Names may be shell-style patterns; later ones win. What no name matches keeps its bits.
    """

    weights: dict[str, WeightBits] = Field(default_factory=dict)
    """Layer -> bits of its weight."""
    activations: dict[str, ActivationBits] = Field(default_factory=dict)
    """Site, the tensor named after its first reader -> bits; none: it stays in float."""

    def text(self, comment: str) -> str:
        """The table as a file, below a comment of one line or more."""
        from genie_cli.config.params import yaml_text

        lines = [f"# {line}" for line in comment.splitlines()]
        for section, bits in (("weights", self.weights), ("activations", self.activations)):
            lines.append(f"{section}:" if bits else f"{section}: {{}}")
            numbers: Mapping[str, int | None] = bits
            lines += [f"  {yaml_text(name)}: {'none' if each is None else each}" for name, each in numbers.items()]
        return "\n".join([*lines, ""])


def gives_table(value: Any) -> bool:
    """True for the path of a table, or its content; false for overrides, patterns with pairs of bits."""
    if isinstance(value, Mapping):
        return bool(value) and set(value) <= set(BitTable.model_fields) and not _pairs(value)
    return isinstance(value, str | Path) and Path(value).suffix.lower() in TABLE_SUFFIXES


def _pairs(value: Mapping[str, Any]) -> bool:
    return any(isinstance(bits, list | tuple) for bits in value.values())


def as_bit_table(value: Any) -> Any:
    """A table as it is given: itself, its content, or the path of a file that holds it.

    Raises:
        InputError: a file that cannot be read, or that holds something else.
    """
    return read_bit_table(Path(value)) if isinstance(value, str | Path) else value


def read_bit_table(path: Path) -> BitTable:
    """The table in a file.

    Raises:
        InputError: it cannot be read, is not YAML, or holds something else; names the layer or site and the bits.
    """
    from genie_cli.config.params import parse_yaml

    form = "it holds 'weights:' with a number for each layer and 'activations:' with a number for each site"
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Bits file {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # UnicodeDecodeError too
        raise InputError(f"Bits file {path} is not valid YAML: {error}.") from None
    if not isinstance(content, Mapping):
        raise InputError(f"Bits file {path} holds no table of bits: {form}.")
    try:
        return BitTable.model_validate({key: section or {} for key, section in content.items()})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][:2])
        raise InputError(
            f"Bits file {path} cannot be used, at '{place}' = {first['input']!r}: {form}; bits of weights are "
            f"{MIN_BITS} to {MAX_BITS}, of activations {MIN_BITS} to {MAX_ACTIVATION_BITS} or none."
        ) from None
