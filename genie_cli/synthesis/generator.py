"""The generator: from one latent vector per image to a standardized image of any input size."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genie_cli.config import InputSpec

_BASE_CHANNELS, _HIDDEN_CHANNELS = 128, 64
_UPSAMPLING = 4
_LEAK = 0.2
_MOST_POSITIONS = 64 * 64
"""Positions of the largest map that the linear layer makes: with a latent vector of 256, 134 million weights."""


class Generator(nn.Module):
    """Linear, BN, up x2, conv, BN, LeakyReLU, up x2, conv, tanh (or nothing), BN without affine.

    The first map has a quarter of the image's height and width, rounded up; an image whose sides are not multiples
    of four is cut out of the middle of a larger one. The linear layer has a weight per latent number, channel and
    position. For images of more than 256x256 it makes a map of half the sides, or a quarter and so on, and each of its
    values stands at several positions. The last batch norm (no affine) gives the images
    mean 0 and std 1 per channel. The generator always runs in training mode.
    """

    def __init__(self, latent_dim: int, spec: InputSpec, tanh: bool = True) -> None:
        """Size the layers for images ``[num_channels, height, width]``; `tanh` False: pixels have no bounds."""
        super().__init__()
        self._tanh = tanh
        self.size = spec.height, spec.width
        self.base = tuple(-(-side // _UPSAMPLING) for side in self.size)
        self.first = self.base
        while math.prod(self.first) > _MOST_POSITIONS:
            self.first = tuple(-(-side // 2) for side in self.first)
        self.linear = nn.Linear(latent_dim, _BASE_CHANNELS * math.prod(self.first))
        self.bn1 = nn.BatchNorm2d(_BASE_CHANNELS)
        self.conv1 = nn.Conv2d(_BASE_CHANNELS, _HIDDEN_CHANNELS, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(_HIDDEN_CHANNELS)
        self.activation = nn.LeakyReLU(_LEAK, inplace=True)
        self.conv2 = nn.Conv2d(_HIDDEN_CHANNELS, spec.num_channels, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(spec.num_channels, affine=False)

    def forward(self, latents: Tensor) -> Tensor:
        """``[B, latent_dim]`` to standardized images ``[B, C, H, W]``, float32."""
        x = self.linear(latents).view(len(latents), _BASE_CHANNELS, *self.first)
        if self.first != self.base:
            x = F.interpolate(x, size=self.base, mode="nearest")
        x = self.bn1(x.contiguous(memory_format=torch.channels_last))
        x = _upsampled_convolution(x, self.conv1)
        x = _upsampled_convolution(self.activation(self.bn2(x)), self.conv2)
        height, width = self.size
        top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
        x = x[:, :, top : top + height, left : left + width]
        # one plane per channel: with channels last, three of them would be too few for a CPU's vectors
        planes = x.float().contiguous()
        planes = planes.tanh() if self._tanh else planes
        images: Tensor = _standardized(planes, self.bn3.eps) if x.is_cuda else self.bn3(planes)
        return images


def _standardized(x: Tensor, eps: float) -> Tensor:
    """Batch norm without affine in training mode, of ``x [B, C, H, W]``, as a reduction over all of a GPU.

    PyTorch's kernel gives each channel one multiprocessor, and an image has few channels.
    """
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    return (x - mean) * (var + eps).rsqrt()


def _upsampled_convolution(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 3x3 convolution, padded by 1, of `x` upsampled by 2 (nearest): ``[B, C, h, w]`` to ``[B, O, 2h, 2w]``.

    In each dimension, two of its three taps read the same pixel of `x`. As one transposed convolution,
    whose 4x4 kernel is the 3x3 kernel convolved with 2x2 ones, it takes 4/9 of the multiplications, and
    the upsampled tensor is never made.
    """
    kernel = conv.weight.flip(2, 3)
    kernel = F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))
    kernel = F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))
    return F.conv_transpose2d(x, kernel.transpose(0, 1), conv.bias, stride=2, padding=1)
