"""The range of values from black to white in image files of more than 8 bits."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from genie_cli.errors import InputError

Range = tuple[float, float]
"""Values of black and white."""

READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""Errors of Pillow at a file that is no readable image."""
_UNRANGED = {"I": "32-bit integers", "F": "floats"}
"""Modes of Pillow that may hold any values, in words."""
_USUAL = (1, 255, 2**16 - 1, 2**32 - 1)
"""Values that are white by convention."""
_LEAST_USED = 1 / 4
"""Share of a usual range that values must reach to be taken as of it."""
_ROUNDING = 1e-3
_SUFFIXES = (".tif", ".tiff")
"""Names of files that hold 32-bit integers or floats."""
_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _UNSIGNED = 258, 339, 1
"""Tags of TIFF, and a value."""


def value_ranges(paths: Sequence[Path]) -> dict[str, Range]:
    """The ranges of a set's 32-bit integer and float images: one for each kind, so that pictures compare.

    Zero is black. White is 1, 255, 65535 or 4294967295: the least that no value is above, unless all values lie far
    below it; then it is the largest value. Where there are negative values, the range is -1 to 1 if it holds them all,
    else that of the values. Files that cannot be read are left out.

    Returns:
        Kind, in words -> range.
    """
    bounds: dict[str, list[float]] = {}
    for path in paths:
        if path.suffix.lower() not in _SUFFIXES:
            continue
        try:
            with Image.open(path) as image:
                if _declared_white(image) is None and image.mode in _UNRANGED:
                    values = _values(image, path)
                    bounds.setdefault(_UNRANGED[image.mode], []).extend((values.min(), values.max()))
        except (InputError, *READ_ERRORS):
            continue
    return {kind: _enclosing(float(min(values)), float(max(values))) for kind, values in bounds.items()}


def in_8_bits(image: Image.Image, path: Path, ranges: Mapping[str, Range]) -> Image.Image:
    """The image with 8 bits per channel; one that has no more is returned as it is.

    Args:
        image: as Pillow opens it.
        path: names it in the message.
        ranges: of the set, see `value_ranges`; without one of its kind, the image's own values decide.

    Raises:
        InputError: the image holds NaN or infinity.
    """
    white = _declared_white(image)
    if white is None and image.mode not in _UNRANGED:
        return image
    values = _values(image, path)
    if white is not None:
        low, high = 0.0, white
    else:
        low, high = ranges.get(_UNRANGED[image.mode]) or _enclosing(float(values.min()), float(values.max()))
    scaled = (values - low) * (255 / (high - low))
    return Image.fromarray(np.rint(scaled.clip(0, 255)).astype(np.uint8))


def _declared_white(image: Image.Image) -> float | None:
    """The largest value of a format that has one, of more than 8 bits."""
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})
        bits = tags.get(_BITS_PER_SAMPLE, (16,))
        return float(2 ** bits[0] - 1)
    return 2.0**16 - 1 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def _values(image: Image.Image, path: Path) -> npt.NDArray[np.float64]:
    values = np.asarray(image)
    if values.dtype == np.int32 and getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, (0,))[0] == _UNSIGNED:
        values = values.view(np.uint32)
    if not np.isfinite(values).all():
        raise InputError(f"Image {path} cannot be used: it holds NaN or infinity.")
    return values.astype(np.float64)


def _enclosing(low: float, high: float) -> Range:
    """The range that values from `low` to `high` are taken as of, see `value_ranges`."""
    if low < -_ROUNDING * high:
        inside = low >= -1 - _ROUNDING and high <= 1 + _ROUNDING
        return (-1.0, 1.0) if inside else (low, max(high, low + _ROUNDING))
    for white in _USUAL:
        if high <= white * (1 + _ROUNDING):
            return (0.0, float(white)) if high >= white * _LEAST_USED or high == 0 else (0.0, high)
    return 0.0, high
