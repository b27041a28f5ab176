"""The text of ``--bits-override``."""

from __future__ import annotations

from collections.abc import Iterable

from genie_cli.config import MAX_BITS, MIN_BITS
from genie_cli.errors import UsageError

_FORM = "PATTERN=W,A, a pattern over layer names with the bits of weight and input, such as 'layer1.*=8,8'"


def parse_override(text: str) -> tuple[str, int, int]:
    """Read ``PATTERN=W,A``: ``layer1.*=8,8`` is pattern ``layer1.*``, weight bits 8, activation bits 8.

    The pattern is a shell's (``*``, ``?``, ``[abc]``) over whole layer names.

    Raises:
        UsageError: another form, or bits out of range.
    """
    pattern, _, numbers = text.rpartition("=")
    bits = [part.strip() for part in numbers.split(",")]
    if not pattern.strip() or len(bits) != 2 or not all(part.isascii() and part.isdigit() for part in bits):
        raise UsageError(f"--bits-override {text!r} must be {_FORM}.")
    for part in bits:
        if len(part) > 3 or not MIN_BITS <= int(part) <= MAX_BITS:
            raise UsageError(f"--bits-override {text!r}: {part} bits are not in {MIN_BITS}..{MAX_BITS}; give {_FORM}.")
    return pattern.strip(), int(bits[0]), int(bits[1])


def parse_overrides(texts: Iterable[str] | None) -> dict[str, tuple[int, int]] | None:
    """Pattern -> weight and activation bits, in the order given; None where nothing is.

    Raises:
        UsageError: as `parse_override`.
    """
    if texts is None:
        return None
    overrides: dict[str, tuple[int, int]] = {}
    for pattern, weight_bits, activation_bits in map(parse_override, texts):
        overrides.pop(pattern, None)  # given again, it ranks as the later one
        overrides[pattern] = (weight_bits, activation_bits)
    return overrides
