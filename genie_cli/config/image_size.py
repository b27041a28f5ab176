"""Height and width of images as people write them: ``360x480``, or one number for a square."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

LARGEST = 65536
"""The most pixels of a side."""
_FORM = "give HEIGHTxWIDTH in pixels, such as 360x480, or one number for a square"


def parse_image_size(value: Any) -> Any:
    """A size as it is kept: a number for a square, else ``(height, width)``; None stays None.

    Args:
        value: ``224``, ``"224"``, ``"360x480"`` or a pair.

    Raises:
        ValueError: something else, or a side out of range.
    """
    if value is None:
        return None
    sides: Any = value.lower().split("x") if isinstance(value, str) else value
    if not isinstance(sides, list | tuple):
        sides = [sides]
    sides = [int(side) if isinstance(side, str) and side.isascii() and side.isdecimal() else side for side in sides]
    if not 1 <= len(sides) <= 2 or not all(type(side) is int for side in sides):
        raise ValueError(_FORM)
    if not all(1 <= side <= LARGEST for side in sides):
        raise ValueError(f"sides are 1 to {LARGEST} pixels long; {_FORM}")
    return sides[0] if len(set(sides)) == 1 else tuple(sides)


ImageSize = Annotated[int | tuple[int, int], BeforeValidator(parse_image_size)]
"""A side of a square, or height and width."""


def height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Both sides of a size."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def size_text(size: int | tuple[int, int]) -> str:
    """A size as the command line takes it: ``224``, ``360x480``."""
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)
