"""The images of an evaluation: labelled or not, or an image set of ``genie synthesize``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from genie_cli.artifacts.images import ImageSet, load_images
from genie_cli.artifacts.metadata import KEY
from genie_cli.config import EvaluateConfig, InputSpec
from genie_cli.data.labeled import check_fits
from genie_cli.data.samples import CountedSamples, Samples
from genie_cli.data.sources import open_data
from genie_cli.errors import UsageError


class ImageSetSamples(CountedSamples):
    """The images of a set, without targets; those of float16 are taken as they are stored."""

    has_targets = False

    def __init__(self, images: ImageSet, spec: InputSpec, num_images: int | None) -> None:
        """Keep the first `num_images` (default all) of the set, normalised for `spec` when they are read."""
        self._images, self._spec = images, spec
        self._num_images = len(images) if num_images is None else min(num_images, len(images))

    @property
    def num_images(self) -> int:
        """Number of images."""
        return self._num_images

    def batches(self, batch_size: int, share: range | None = None) -> Iterator[tuple[Tensor, None]]:
        """Go once through the images, see `Samples.batches`."""
        for rows in self.rows(batch_size, share):
            chosen = slice(rows.start, rows.stop)
            yield self._images.normalized(self._spec.mean, self._spec.std, chosen), None

    def pixels(self, rows: Sequence[int]) -> Tensor:
        """Some images, clipped to pixels; see `CountedSamples.pixels`."""
        unit = self._images.normalized((0.0,) * self._spec.num_channels, (1.0,) * self._spec.num_channels, list(rows))
        return (unit * 255).round().clamp(0, 255).to(torch.uint8)


def open_samples(data: str, config: EvaluateConfig, spec: InputSpec) -> Samples:
    """The images that ``--data`` names, prepared for one network.

    Args:
        data: a form of `open_data`, or a file that ``genie synthesize`` wrote.
        config: number of images, and how image files are read.
        spec: the network's input.

    Raises:
        UsageError: none of these forms, or fewer images than are wanted.
        InputError: data that cannot be used.
    """
    samples = _open(data, config, spec)
    check_number(samples, config.num_images, data)
    return samples


def check_number(samples: Samples, num_images: int | None, data: str) -> None:
    """Refuse to take more images than there are; `data` names them.

    Raises:
        UsageError: fewer images than are wanted.
    """
    found = samples.num_images
    if found is not None and num_images is not None and num_images > found:
        raise UsageError(f"--num-images {num_images} is more than the {found} images of {data}.")


def image_set_samples(images: ImageSet, spec: InputSpec, num_images: int | None, name: str) -> ImageSetSamples:
    """The first `num_images` (default all) images of a set, called `name` in messages.

    Raises:
        InputError: channels or size do not fit the network.
    """
    channels, height, width = images.images.shape[1:]
    check_fits(name, (channels, height, width), spec)
    return ImageSetSamples(images, spec, num_images)


def _open(data: str, config: EvaluateConfig, spec: InputSpec) -> Samples:
    if data.endswith(".safetensors") and _is_image_set(data):
        return image_set_samples(load_images(Path(data).expanduser()), spec, config.num_images, data)
    return open_data(data, spec, config.num_workers, config.num_images, class_order=config.class_order)


def _is_image_set(data: str) -> bool:
    try:
        with safe_open(Path(data).expanduser(), framework="pt") as file:
            return KEY in (file.metadata() or {})
    except (SafetensorError, OSError, RuntimeError, ValueError):
        return False  # `open_data` says what is wrong with it
