"""Images as users give them: an image set, a path, tensors, or an iterable of their own."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike, fspath
from typing import Any

from torch import Tensor
from torch.utils.data import TensorDataset

from genie_cli.artifacts.images import ImageSet
from genie_cli.config import InputSpec
from genie_cli.data.factory import FactorySamples
from genie_cli.errors import UsageError
from genie_cli.runtime.user_code import UserCode

Images = ImageSet | str | PathLike[str] | Tensor | Iterable[Any]
"""An `ImageSet`; a path or a form of ``--data``; pixels ``[n, C, H, W]``, uint8 from 0 to 255 or floats from 0 to 1;
or an iterable of images, or of (image, target), such as a `torch.utils.data.Dataset` or `DataLoader`."""


def named(images: Images) -> str | None:
    """The text that names images; None where they are given themselves."""
    return fspath(images) if isinstance(images, str | PathLike) else None


def given_samples(images: Any, spec: InputSpec, num_images: int | None) -> FactorySamples:
    """Tensors, or an iterable, as samples.

    Args:
        images: pixels ``[n, C, H, W]``, a pair of these and their targets ``[n, ...]``, or an iterable.
        spec: the network's input.
        num_images: number of images to read at most; None: all.

    Raises:
        InputError: images of another shape than the network's input, or with values that pixels do not have.
        UsageError: images and targets of different number.
    """
    items = images
    if isinstance(images, tuple) and len(images) == 2 and all(isinstance(each, Tensor) for each in images):
        pixels, targets = images
        if len(pixels) != len(targets):
            raise UsageError(f"{len(pixels)} images have {len(targets)} targets: give one for each.")
        items = TensorDataset(pixels.detach().cpu(), targets.detach().cpu())
    elif isinstance(images, Tensor):
        items = images.detach().cpu()
    return FactorySamples(UserCode("Data", "images", lambda: items, None, None), spec, num_images)
