"""The prior on the images themselves (The Knowledge Within), and the crops that the teacher sees (IntraQ)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIGMA = 1.0
"""Standard deviation of the smoothing Gaussian in pixels (authors' constant)."""
SMALLEST_SMOOTHED = 3
"""Sides from which there are pixels with all eight neighbours."""


def smoothness_loss(images: Tensor) -> Tensor:
    """Mean squared difference between the images and themselves smoothed by a 3x3 Gaussian.

    This is the image prior of The Knowledge Within (Haroush et al., CVPR 2020), which reduces noise from
    pixel to pixel. It is taken over the pixels that have all eight neighbours, so it needs no padding.

    Args:
        images: ``[B, C, H, W]`` float32, H and W at least 3.
    """
    neighbour = math.exp(-0.5 / SIGMA**2)
    share = neighbour / (1 + 2 * neighbour)
    # shifted sums per axis: a depthwise convolution takes four times as long on a CPU
    smoothed = images
    for dim in (2, 3):
        inner = smoothed.shape[dim] - 2
        before, own, after = (smoothed.narrow(dim, place, inner) for place in range(3))
        smoothed = (1 - 2 * share) * own + share * (before + after)
    return (images[:, :, 1:-1, 1:-1] - smoothed).square().mean()


def draw_crops(num_steps: int, batch: int, low: float, prob: float, generator: torch.Generator) -> Tensor:
    """Crops of all steps, of the image's proportions: ``[num_steps, batch, 3]`` float32.

    The three numbers are the top as a share of the image's height, the left end as one of its width, and the crop's
    share of both.

    Local object reinforcement (IntraQ; Zhong et al., CVPR 2022). The authors' code crops with probability
    0.5 to a share of the area from 0.5 to 1, for all images of a step or for none. Here each image is drawn
    on its own. Their code also varies the crop's proportions and mirrors it, which is left out.

    Args:
        num_steps: steps of the batch.
        batch: number of images.
        low: smallest share of the area, above 0 to 1.
        prob: probability of a crop; the other images are not cropped (top 0, left 0, side 1).
        generator: source of the random numbers, on the CPU.
    """
    area = low + (1 - low) * torch.rand(num_steps, batch, generator=generator)
    is_cropped = torch.rand(num_steps, batch, generator=generator) < prob
    side = torch.where(is_cropped, area.sqrt(), 1.0)
    corner = torch.rand(num_steps, batch, 2, generator=generator) * (1 - side).unsqueeze(2)
    return torch.cat([corner, side.unsqueeze(2)], 2)


def local_crop(images: Tensor, places: Tensor) -> Tensor:
    """Each image's crop, enlarged to the whole image's size (bilinear).

    Rows and columns are interpolated by one matrix each, so the backward pass is two more products. The
    backward pass of ``grid_sample`` would add in any order on CUDA.

    Args:
        images: ``[B, C, H, W]`` float32.
        places: ``[B, 3]``, one step of `draw_crops`, on the images' device.
    """
    top, left, side = places.to(images.dtype).unbind(1)
    rows = _interpolation(top, side, images.shape[2])
    columns = _interpolation(left, side, images.shape[3])
    wide = torch.einsum("bchw,bvw->bchv", images, columns)
    return torch.einsum("buh,bchv->bcuv", rows, wide)


def _interpolation(start: Tensor, share: Tensor, size: int) -> Tensor:
    """Matrices ``[B, size, size]`` that read `size` pixels, evenly spread over a share of the `size` pixels.

    Both pixel grids are centred, as with ``align_corners=False``; a place outside the image reads its
    border. Without a crop the matrix is exactly the identity.
    """
    pixels = torch.arange(size, device=start.device, dtype=start.dtype)
    centres = start.unsqueeze(1) * size + (pixels + 0.5) * share.unsqueeze(1) - 0.5
    centres = centres.clamp(0, size - 1)
    return (1 - (centres.unsqueeze(2) - pixels).abs()).clamp(min=0)
