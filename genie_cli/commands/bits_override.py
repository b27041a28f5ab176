"""The text of ``--bits-override``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from genie_cli.config import MAX_ACTIVATION_BITS, MAX_BITS, MIN_BITS
from genie_cli.config.bit_table import TABLE_SUFFIXES
from genie_cli.errors import UsageError

_FORM = (
    "PATTERN=W,A, a pattern over layer names with the bits of weight and input, such as 'layer1.*=8,8', or the path of "
    "a bits.yaml"
)


def parse_override(text: str) -> tuple[str, int, int | None]:
    """Read ``PATTERN=W,A``: ``layer1.*=8,8`` is pattern ``layer1.*``, weight bits 8, activation bits 8.

    The pattern is a shell's (``*``, ``?``, ``[abc]``) over whole layer names. Activation bits None: ``fc=8,none``.

    Raises:
        UsageError: another form, or bits out of range.
    """
    pattern, _, numbers = text.rpartition("=")
    bits = [part.strip().lower() for part in numbers.split(",")]
    if (
        not pattern.strip()
        or len(bits) != 2
        or not (_is_number(bits[0]) and (bits[1] == "none" or _is_number(bits[1])))
    ):
        raise UsageError(f"--bits-override {text!r} must be {_FORM}.")
    for part, most in zip(bits, (MAX_BITS, MAX_ACTIVATION_BITS), strict=True):
        if part != "none" and (len(part) > 3 or not MIN_BITS <= int(part) <= most):
            raise UsageError(f"--bits-override {text!r}: {part} bits are not in {MIN_BITS}..{most}; give {_FORM}.")
    return pattern.strip(), int(bits[0]), None if bits[1] == "none" else int(bits[1])


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def parse_overrides(texts: Iterable[str] | None) -> dict[str, tuple[int, int | None]] | None:
    """Pattern -> weight and activation bits, in the order given; None where nothing is.

    Raises:
        UsageError: as `parse_override`.
    """
    if texts is None:
        return None
    overrides: dict[str, tuple[int, int | None]] = {}
    for pattern, weight_bits, activation_bits in map(parse_override, texts):
        overrides.pop(pattern, None)  # given again, it ranks as the later one
        overrides[pattern] = (weight_bits, activation_bits)
    return overrides


def override_keys(texts: Iterable[str] | None) -> dict[str, Any]:
    """Keys of the configuration for the texts of ``--bits-override``: patterns, and the file of a table.

    Raises:
        UsageError: as `parse_override`, or more than one file.
    """
    if texts is None:
        return {}
    given = list(texts)
    files = [text for text in given if text.lower().endswith(TABLE_SUFFIXES)]
    patterns = [text for text in given if text not in files]
    if len(files) > 1:
        raise UsageError(f"--bits-override takes one file, it was given {', '.join(files)}: put them into one.")
    return {
        **({"bits_override": parse_overrides(patterns)} if patterns else {}),
        **({"bits_table": files[0]} if files else {}),
    }
