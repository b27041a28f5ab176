"""Images of a set side by side, as one picture."""

from __future__ import annotations

import io
import math

import torch
from PIL import Image

from genie_cli.artifacts.images import ImageSet
from genie_cli.artifacts.pixels import unit_pixels

_GAP = 1
"""Pixels between two images."""
_GAP_GRAY = 128


def num_columns(num_images: int) -> int:
    """Columns of a grid that is about a square."""
    return math.ceil(math.sqrt(num_images))


def picture_of(images: ImageSet, num_images: int, side: int | None = None) -> Image.Image:
    """The first images of a set as a grid, row by row; values outside of the pixel range are clipped.

    Three channels are red, green and blue; the mean of any other number is shown in gray.

    Args:
        images: the set.
        num_images: of them; at most all are shown.
        side: pixels of the longer side of each image, which is then made smaller; None: its own.

    Returns:
        An RGB picture.
    """
    pixels = unit_pixels(images, slice(0, num_images))
    if pixels.shape[1] != 3:
        pixels = pixels.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    rows = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    tiles = [Image.fromarray(row) for row in rows]
    if side is not None and side < max(tiles[0].size):
        scale = side / max(tiles[0].size)
        tiles = [
            tile.resize((max(1, round(tile.width * scale)), max(1, round(tile.height * scale))), Image.Resampling.BOX)
            for tile in tiles
        ]
    columns = num_columns(len(tiles))
    width, height = tiles[0].width + _GAP, tiles[0].height + _GAP
    size = (columns * width - _GAP, math.ceil(len(tiles) / columns) * height - _GAP)
    grid = Image.new("RGB", size, (_GAP_GRAY,) * 3)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        grid.paste(tile, (column * width, row * height))
    return grid


def as_png(picture: Image.Image) -> bytes:
    """The picture as a PNG file; the same picture gives the same bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
