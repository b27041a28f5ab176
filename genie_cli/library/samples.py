"""Images and targets to measure on, as users give them."""

from __future__ import annotations

from typing import Any

from genie_cli.artifacts.images import ImageSet
from genie_cli.config import EvaluateConfig, InputSpec
from genie_cli.data.samples import Samples
from genie_cli.evaluation.images import check_number, image_set_samples, open_samples
from genie_cli.library.images import given_samples, named


def open_given(data: Any, config: EvaluateConfig, spec: InputSpec) -> Samples:
    """An image set, a path or another form of ``--data``, tensors or an iterable, prepared for one network.

    Args:
        data: `genie_cli.library.images.Images`, or a pair of pixels ``[n, C, H, W]`` and targets ``[n, ...]``.
        config: number of images, and how image files are read.
        spec: the network's input.

    Raises:
        UsageError: none of these forms, or fewer images than are wanted.
        InputError: data that cannot be used.
    """
    name = named(data)
    if name is not None:
        return open_samples(name, config, spec)
    if isinstance(data, ImageSet):
        samples: Samples = image_set_samples(data, spec, None, "The image set")
        check_number(samples, config.num_images, "the image set")
        return image_set_samples(data, spec, config.num_images, "The image set")
    samples = given_samples(data, spec, config.num_images)
    check_number(samples, config.num_images, "the data")
    return samples
