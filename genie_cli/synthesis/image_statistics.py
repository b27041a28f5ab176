"""The statistics of each image itself: those of the pixel prior, mean 0 and deviation 1 in standardized images."""

from __future__ import annotations

from torch import Tensor

_TINY = 1e-12


def image_statistics_loss(images: Tensor) -> Tensor:
    """Each image's channel mean and std over its pixels against 0 and 1, summed, per image of the batch.

    Args:
        images: ``[B, C, H, W]``, standardized, float32.
    """
    pixels = images.flatten(2)
    mean = pixels.mean(2, keepdim=True)
    var = (pixels - mean).square().sum(2) / max(pixels.shape[2] - 1, 1)
    std = var.clamp(min=_TINY).sqrt()
    return (mean.square().sum() + (std - 1).square().sum()) / len(images)
