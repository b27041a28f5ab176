"""The images a quantizer learns on, checked against the network and normalised for it."""

from __future__ import annotations

from torch import Tensor

from genie_cli.artifacts.images import ImageSet
from genie_cli.errors import InputError, UsageError
from genie_cli.models.teacher import Teacher


def calibration_images(images: ImageSet, teacher: Teacher, num_images: int | None) -> Tensor:
    """The first `num_images` (default all) images, ``[n, C, S, S]`` float32, normalised for `teacher`.

    Raises:
        InputError: channels or size do not fit the network.
        UsageError: more images are wanted than there are.
    """
    found, spec = tuple(images.images.shape[1:]), teacher.input
    wanted = (spec.num_channels, spec.size, spec.size)
    if found != wanted:
        raise InputError(
            f"The images are {_size(found)} and '{teacher.name}' takes {_size(wanted)} (channels x height x width): "
            "use images made for this input, or set --input-size and --num-channels."
        )
    if num_images is not None and num_images > len(images):
        raise UsageError(f"--num-images {num_images} is more than the {len(images)} images of the set.")
    return images.normalized(spec.mean, spec.std, slice(0, num_images))


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in shape)
