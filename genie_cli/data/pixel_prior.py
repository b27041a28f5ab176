"""The pixel prior: the mean and deviation that images are taken to have, and where a network's normalisation puts them.

Synthesized images start from the statistics of photographs and are held to them. These are known for pixels. In a
network's normalised space they depend on its mean and std.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genie_cli.config import InputSpec

_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and std of the pixels of ImageNet's training images, by which its networks are normalised."""
_ANY_CHANNEL = 0.449, 0.226
"""Their averages over the three channels."""


@dataclass(frozen=True)
class PixelPrior:
    """Mean and standard deviation that an image's pixels are taken to have, per channel.

    With ImageNet's normalisation the prior is standard: mean 0 and std 1 exactly. With an input in 0..1 (mean 0, std 1)
    it is that of the pixels themselves, and with mean 0 and std 1 / 255 it is 255 times as large.

    Attributes:
        mean: one value per channel.
        std: one positive value per channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of_pixels(cls, num_channels: int) -> PixelPrior:
        """The prior on pixels in 0..1: ImageNet's statistics for three channels, their averages for another number."""
        if num_channels == len(_RGB[0]):
            return cls(*_RGB)
        mean, std = _ANY_CHANNEL
        return cls((mean,) * num_channels, (std,) * num_channels)

    @classmethod
    def of_input(cls, spec: InputSpec) -> PixelPrior:
        """The prior on pixels, carried into the normalised space of a network's input."""
        pixels = cls.of_pixels(spec.num_channels)
        # a number minus itself is exactly 0 and divided by itself exactly 1, so ImageNet's own values become standard
        mean = ((own - by) / over for own, by, over in zip(pixels.mean, spec.mean, spec.std, strict=True))
        std = (own / over for own, over in zip(pixels.std, spec.std, strict=True))
        return cls(tuple(mean), tuple(std))

    @property
    def is_standard(self) -> bool:
        """True if the mean is 0 and the std 1 in each channel."""
        return all(mean == 0 for mean in self.mean) and all(std == 1 for std in self.std)

    def placement(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """The map that puts standardized images ``[B, C, H, W]`` (mean 0, std 1) where this prior is.

        Where the prior is standard, it returns the images themselves, so that no bit of them changes.

        Args:
            device: where the images are; the map copies nothing to it, so that a recorded step can contain it.
        """
        if self.is_standard:
            return lambda images: images
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1) for values in (self.mean, self.std)
        )
        return lambda images: images * std + mean
