"""Brightness and contrast of each image, drawn once: photographs differ in both.

The paper's loss pulls the mean and the standard deviation of every image to those of the pixel prior, so that a network
sees one brightness and one contrast while it is quantized. Here an image keeps a brightness and a contrast of its own
behind that loss. The statistics of a whole batch stay those of the prior.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genie_cli.config import SynthesizeConfig
from genie_cli.runtime.determinism import make_generator


class Tone:
    """``contrast * image + brightness`` of the images of one batch.

    Attributes:
        contrast: ``[B, 1, 1, 1]``, positive; its mean square is ``1 - brightness_std^2``.
        brightness: ``[B, 1, 1, 1]``, in standard deviations of the pixel prior.
    """

    contrast: Tensor
    brightness: Tensor

    def __init__(self, index: int, size: int, config: SynthesizeConfig, device: torch.device) -> None:
        """Draw those of batch `index`, of `size` images, under its own seed.

        The brightness is normal, the contrast log-normal. The mean square of the contrast is such that the pixels of
        all images together have a variance of 1.
        """
        draws = make_generator(torch.device("cpu"), config.seed, "tone", index)
        spread = config.contrast_std
        scale = (1 - config.brightness_std**2) ** 0.5
        noise = torch.randn(2, size, 1, 1, 1, generator=draws)
        self.contrast = ((spread * noise[0] - spread**2).exp() * scale).to(device)
        self.brightness = (config.brightness_std * noise[1]).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]``, standardized, with their brightness and contrast."""
        return images * self.contrast + self.brightness


def batch_tone(index: int, size: int, config: SynthesizeConfig, device: torch.device) -> Tone | None:
    """The tone of a batch; None where all images have that of the pixel prior."""
    return Tone(index, size, config, device) if config.brightness_std or config.contrast_std else None
