"""The images a quantizer learns on, checked against the network and normalised for it."""

from __future__ import annotations

import torch
from torch import Tensor

from genie_cli.artifacts.images import ImageSet
from genie_cli.errors import InputError, UsageError
from genie_cli.models.teacher import Teacher


class CalibrationImages:
    """Some images of a set, normalised for a network when they are read: the set stays as small as it is stored."""

    def __init__(self, images: ImageSet, teacher: Teacher, rows: range) -> None:
        """Choose `rows` of the set."""
        self._images, self._spec, self._rows = images, teacher.input, rows

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    def __getitem__(self, rows: slice) -> Tensor:
        """Images ``[k, C, S, S]``, float32, normalised."""
        chosen = torch.tensor(self._rows[rows], dtype=torch.int64)
        return self._images.normalized(self._spec.mean, self._spec.std, chosen)


def calibration_images(
    images: ImageSet, teacher: Teacher, num_images: int | None, part: tuple[int, int] = (0, 1)
) -> CalibrationImages:
    """The first `num_images` (default all) images, or this process's share of them.

    Args:
        images: the set.
        teacher: the network to normalise for.
        num_images: how many to use.
        part: rank and number of processes that share them.

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
    rank, size = part
    return CalibrationImages(images, teacher, range(rank, num_images or len(images), size))


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in shape)
