"""Stored images as pixels: values in 0..1, whatever type and normalisation they are stored in, and their statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genie_cli.artifacts.images import ImageSet

_ROWS_AT_ONCE = 64
"""Images that are in memory as float32 at once."""


@dataclass(frozen=True)
class PixelStatistics:
    """Statistics of all pixels of an image set, on the scale where 0 is black and 1 is white.

    Attributes:
        mean: one value per channel.
        std: population standard deviation per channel.
        share_outside: share of the values below 0 or above 1, which no image file can hold.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    share_outside: float


def unit_pixels(images: ImageSet, rows: slice) -> Tensor:
    """Images on the scale 0..1; synthesized ones may lie outside of it.

    Args:
        images: the set.
        rows: which of them.

    Returns:
        float32 [k, C, H, W].
    """
    num_channels = images.metadata.input.num_channels
    return images.normalized((0.0,) * num_channels, (1.0,) * num_channels, rows)


def pixel_statistics(images: ImageSet) -> PixelStatistics:
    """Mean, deviation and share outside of the pixel range, over all images; sums are in float64."""
    num_channels = images.metadata.input.num_channels
    sums = torch.zeros(2, num_channels, dtype=torch.float64)
    num_outside = 0
    for first in range(0, len(images), _ROWS_AT_ONCE):
        values = unit_pixels(images, slice(first, first + _ROWS_AT_ONCE))
        num_outside += int(((values < 0) | (values > 1)).sum())
        flat = values.double().transpose(0, 1).reshape(num_channels, -1)
        sums += torch.stack([flat.sum(1), flat.square().sum(1)])
    mean, square = sums / (images.images.numel() // num_channels)
    std = (square - mean.square()).clamp(min=0).sqrt()
    return PixelStatistics(tuple(mean.tolist()), tuple(std.tolist()), num_outside / images.images.numel())
