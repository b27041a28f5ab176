"""Images as commands read them: batches that are normalised for one network, with targets or without."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Task = Literal["classification", "segmentation", "detection"]
"""Kind of targets: labels int64 ``[B]``; class maps, integers ``[B, H, W]`` or one ``[H, W]`` per image; one mapping
of ``boxes`` ``[k, 4]`` (x1, y1, x2, y2, pixels of the network's input) and ``labels`` ``[k]`` per image."""


class Samples(ABC):
    """A finite, ordered set of images, with or without targets.

    Attributes:
        task: kind of the targets; None: there are none, or they are of the user's own kind.
        has_targets: False: images alone.
        class_names: one name per class in the order of the labels, None where the source has none.
        is_drawn: calibration images are a draw under the seed; False: they are the first ones.
        code_sha256: hash of the user's file that they come from, None of other sources.
        notes: what the user should know of how the images were taken.
        warnings: what the user should look at.
    """

    task: Task | None = None
    has_targets = True
    class_names: list[str] | None = None
    is_drawn = True
    code_sha256: str | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    @abstractmethod
    def num_images(self) -> int | None:
        """Number of images; None where only the end shows it."""

    def num_batches(self, batch_size: int) -> int | None:
        """Number of batches that hold all images, None where that of the images is not known."""
        return None if self.num_images is None else math.ceil(self.num_images / batch_size)

    @abstractmethod
    def batches(self, batch_size: int, share: range | None = None) -> Iterator[tuple[Tensor, Any]]:
        """Go once through the images in their order.

        Args:
            batch_size: images per batch, the last batch may have fewer.
            share: indices of the batches to read, out of `num_batches`. Images of other batches are not read.
                None: all.

        Yields:
            images float32 [B, C, H, W] on the CPU, normalised by the network's mean and std; their targets, see
            `Task`, or None.

        Raises:
            InputError: an image or a target that cannot be used.
        """

    @abstractmethod
    def calibration_pixels(self, num_images: int | None, seed: int) -> Tensor:
        """Images to calibrate on, as pixels of the network's size: uint8 ``[n, C, H, W]``.

        Args:
            num_images: so many; None: all, in their order.
            seed: of the draw, where they are drawn.

        Raises:
            UsageError: more images are wanted than there are.
            InputError: an image that cannot be used.
        """


class CountedSamples(Samples):
    """Samples whose number is known, and of which any can be read."""

    @property
    @abstractmethod
    def num_images(self) -> int:
        """Number of images."""

    def rows(self, batch_size: int, share: range | None) -> list[range]:
        """The images of each batch of a share, see `batches`."""
        chosen = range(math.ceil(self.num_images / batch_size)) if share is None else share
        return [range(i * batch_size, min((i + 1) * batch_size, self.num_images)) for i in chosen]

    @abstractmethod
    def pixels(self, rows: Sequence[int]) -> Tensor:
        """Some images as pixels of the network's size: uint8 ``[len(rows), C, H, W]``.

        Raises:
            InputError: an image that cannot be used.
        """

    def calibration_pixels(self, num_images: int | None, seed: int) -> Tensor:
        """A draw under the seed, ``randperm(n)[:num_images]``, or all; see `Samples.calibration_pixels`."""
        rows = torch.arange(self.num_images)
        if num_images is not None:
            rows = torch.randperm(self.num_images, generator=torch.Generator().manual_seed(seed))[:num_images]
        return self.pixels(rows.tolist()).contiguous()
