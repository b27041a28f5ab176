"""Normalise pixels into the input of a network."""

from __future__ import annotations

import torch
from torch import Tensor

from genie_cli.config import InputSpec


def normalize_pixels(images: Tensor, spec: InputSpec) -> Tensor:
    """Normalise pixels: (pixel / 255 - mean) / std, per channel.

    Args:
        images: uint8 [B, C, H, W], 0..255.
        spec: mean and std, C values each.

    Returns:
        float32 [B, C, H, W] on the device of `images`.
    """
    mean = torch.tensor(spec.mean, dtype=torch.float32, device=images.device).view(-1, 1, 1)
    std = torch.tensor(spec.std, dtype=torch.float32, device=images.device).view(-1, 1, 1)
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)
