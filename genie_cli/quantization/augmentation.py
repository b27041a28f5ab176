"""Copies of the calibration images, each changed at random once: more images for the same work.

The teacher's outputs of a copy are computed from the copy, as those of any other image. So a copy needs no label and
need not look natural, and its targets stay right from unit to unit. Sources: flips and shifts are the field's common
augmentation (Krizhevsky et al. 2012); CutMix of calibration images is the part of MetaAug (Pham et al., ECCV 2024) that
needs no second network.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from genie_cli.quantization.activations.passing import ImageRows
from genie_cli.runtime.determinism import make_generator

Augmentation = Literal["flips", "shifts", "cutmix"]

LARGEST_SHIFT = 0.125
"""Of a side (4 of 32 pixels, as in the common augmentation of CIFAR)."""


class AugmentedImages:
    """Images, and behind them as many copies, each changed in a way that the seed and its row decide."""

    def __init__(self, images: ImageRows, augmentation: Augmentation, seed: int) -> None:
        """Make copies of `images` when they are asked for."""
        self._images, self._augmentation, self._seed = images, augmentation, seed

    def __len__(self) -> int:
        """Number of images and copies."""
        return 2 * len(self._images)

    def __getitem__(self, rows: slice) -> Tensor:
        """Images ``[k, C, H, W]``, float32, normalised."""
        chosen, num = range(len(self))[rows], len(self._images)
        originals = [row for row in chosen if row < num]
        parts = [self._images[originals[0] : originals[-1] + 1]] if originals else []
        parts += [self._copy(row - num) for row in chosen if row >= num]
        return torch.cat(parts)

    def _copy(self, row: int) -> Tensor:
        """The copy ``[1, C, H, W]`` of a row."""
        generator = make_generator(torch.device("cpu"), self._seed, "augmentation", row)
        image = self._images[row : row + 1]
        if self._augmentation == "flips":
            return image.flip(-1)
        if self._augmentation == "shifts":
            return shifted(image, generator)
        other = int(torch.randint(len(self._images), (), generator=generator))
        return cut_and_mixed(image, self._images[other : other + 1], generator)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images ``[B, C, H, W]``, moved by up to `LARGEST_SHIFT` of each side; what comes in is mirrored at the border."""
    height, width = images.shape[2:]
    most = [min(max(1, round(side * LARGEST_SHIFT)), side - 1) for side in (height, width)]
    top, left = (int(torch.randint(2 * side + 1, (), generator=generator)) for side in most)
    padded = F.pad(images, (most[1], most[1], most[0], most[0]), mode="reflect")
    return padded[:, :, top : top + height, left : left + width]


def cut_and_mixed(images: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
    """Images ``[B, C, H, W]`` with a rectangle of `others` in its place (CutMix, Yun et al., ICCV 2019).

    The rectangle has the image's proportions and a share of its area that is uniform in 0 to 1. Its centre is uniform
    over the image, at whose border it ends.
    """
    height, width = images.shape[2:]
    share, y, x = torch.rand(3, generator=generator).tolist()
    ends = []
    for centre, side in ((y, height), (x, width)):
        half = side * share**0.5 / 2
        ends.append(slice(max(0, round(centre * side - half)), min(side, round(centre * side + half))))
    mixed = images.clone()
    mixed[:, :, *ends] = others[:, :, *ends]
    return mixed


def mixed_with_next(images: Tensor) -> Tensor:
    """Images ``[B, ...]`` of a batch in random order, each averaged with the next one (mixup, Zhang et al., ICLR 2018).

    The weights are spread evenly over 0 to 1. The order is random, so partners and weights are: nothing is drawn here.
    """
    weights = (torch.arange(len(images), device=images.device) + 0.5) / len(images)
    return torch.lerp(images, images.roll(1, 0), weights.to(images.dtype).view(-1, *[1] * (images.dim() - 1)))
