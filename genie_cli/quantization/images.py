"""The images a quantizer learns on, checked against the network and normalised for it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from genie_cli.artifacts.images import ImageSet, ImagesMetadata, load_images
from genie_cli.artifacts.metadata import KEY, provenance, sniff, validate
from genie_cli.config import InputSpec
from genie_cli.data.samples import Samples
from genie_cli.data.sources import names_source, open_data
from genie_cli.errors import InputError, UsageError
from genie_cli.models.network_input import RecordedInput
from genie_cli.models.teacher import Teacher


def open_image_set(images: str, teacher: Teacher, num_images: int | None, seed: int) -> ImageSet:
    """An image set, or real images as one: a draw under the seed, or all of them in their order.

    Args:
        images: path of an image set, or real images in a form of `open_data`; a ``.safetensors`` needs no labels.
        teacher: the network, whose preprocessing image files go through.
        num_images: so many real images, ``randperm(n)[:num_images]`` under `seed`; of a factory the first ones.
        seed: of the draw.

    Raises:
        UsageError: more real images are wanted than there are.
        InputError: images that cannot be read, or raw tensors of another shape than the network's input.
    """
    if not _is_source(images):
        return load_images(Path(images))
    data = open_data(images, teacher.input, train=True)
    if num_images is not None and data.num_images is not None and num_images > data.num_images:
        raise UsageError(f"--num-images {num_images} is more than the {data.num_images} images of {images}.")
    return drawn_image_set(data, teacher.input, num_images, seed)


def drawn_image_set(data: Samples, spec: InputSpec, num_images: int | None, seed: int) -> ImageSet:
    """Real images as an image set: a draw under the seed, or all of them in their order; see `open_image_set`.

    Args:
        data: the images, prepared for a network.
        spec: its input.
        num_images: so many images.
        seed: of the draw.
    """
    pixels = data.calibration_pixels(num_images, seed)
    metadata = ImagesMetadata(
        **provenance({}, seed if num_images is not None and data.is_drawn else None, spec, None, None),
        teacher_sha256=None,
        num_images=len(pixels),
        dtype="uint8",
    )
    sha256 = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
    return ImageSet(pixels, metadata, sha256, data.code_sha256, data.notes, data.warnings)


def recorded_input(images: str) -> RecordedInput | None:
    """The input that an image set records; None for anything else, of which `open_image_set` says what is wrong."""
    if names_source(images):
        return None
    try:
        metadata = validate(ImagesMetadata, sniff(Path(images)), Path(images))
    except InputError:
        return None
    return RecordedInput(images, metadata.teacher_sha256, metadata.input)


def _is_source(images: str) -> bool:
    """True if this names real images: a form of `open_data`, or a file of tensors that is not an artifact."""
    if names_source(images):
        return True
    try:
        with safe_open(images, framework="pt") as file:
            return KEY not in (file.metadata() or {}) and "images" in file.keys()  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError):
        return False  # `load_images` says what is wrong with it


class CalibrationImages:
    """Some images of a set, normalised for a network when they are read: the set stays as small as it is stored."""

    def __init__(self, images: ImageSet, teacher: Teacher, rows: range) -> None:
        """Choose `rows` of the set."""
        self._images, self._spec, self._rows = images, teacher.input, rows

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    def __getitem__(self, rows: slice) -> Tensor:
        """Images ``[k, C, H, W]``, float32, normalised."""
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
    wanted = spec.shape
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
