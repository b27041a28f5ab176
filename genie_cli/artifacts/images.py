"""Calibration images: one safetensors file with the tensor ``images`` [n, C, H, W].

float16 holds images as a network takes them, normalised by the mean and std of the metadata; uint8
holds pixels. Any quantizer can read any set: `ImageSet.normalized` returns the input of any network.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from genie_cli.artifacts.metadata import ArtifactMetadata, all_finite, file_sha256, read, serialize, validate
from genie_cli.config import InputSpec
from genie_cli.errors import InputError, UsageError
from genie_cli.runtime.atomic import atomic_write_bytes

ImageDtype = Literal["float16", "uint8"]

_DTYPES = {"float16": torch.float16, "uint8": torch.uint8}
_FARTHEST = 3
"""Synthesized pixels may lie so many times the whole range of pixels from their mean."""


class ImagesMetadata(ArtifactMetadata):
    """The metadata of an image set; teacher, hash and seed are None for real images."""

    kind: Literal["images"] = "images"
    other_teachers: dict[str, str] = Field(default_factory=dict)
    """Hash -> name of each further network that the images were made for (MixMix)."""
    student_sha256: str | None = None
    """Hash of the weights file of the student: the images make it differ from the teacher (ZAQ)."""
    num_images: int = Field(ge=1)
    dtype: ImageDtype


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A loaded image set."""

    images: Tensor
    """[n, C, H, W], float16 (normalised by `metadata.input`) or uint8 (pixels)."""
    metadata: ImagesMetadata
    sha256: str
    """Hash of the file."""
    code_sha256: str | None = None
    """Hash of the user's file that gave the images, where one did."""
    notes: tuple[str, ...] = ()
    """Notes on how real images were taken."""
    warnings: tuple[str, ...] = ()
    """Warnings of the same."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def save(self, path: str | Path) -> None:
        """Write the file that ``genie synthesize`` writes, wholly or not at all.

        Raises:
            InputError: the file cannot be written.
        """
        save_images(Path(path), self.images, self.metadata)

    def normalized(
        self,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        indices: Tensor | Sequence[int] | slice | None = None,
    ) -> Tensor:
        """Images as a network takes them: (pixel / 255 - mean) / std per channel.

        Images stored with the same mean and std are returned as stored, without any rounding.

        Args:
            mean: one value per channel, or one for all.
            std: the same, above 0.
            indices: rows of the images to return; None: all.

        Returns:
            float32 [k, C, H, W].

        Raises:
            InputError: the network takes another number of channels.
            UsageError: a value that is not finite, or a std that is not above 0.
        """
        num_channels = self.images.shape[1]
        mean, std = _numbers("mean", mean, num_channels), _numbers("std", std, num_channels)
        if min(std, default=1) <= 0:
            raise UsageError(f"std = {std} cannot be used: give numbers above 0.")
        if len(mean) != len(std):
            raise UsageError(f"mean has {len(mean)} value(s) and std {len(std)}: give one of each per channel.")
        if len(mean) != num_channels:
            raise InputError(
                f"The images have {num_channels} channel(s), the network takes {len(mean)}: "
                "use images with as many channels as the network's input."
            )
        chosen = self.images[_index(indices)].to(torch.float32)
        stored = self.metadata.input
        if self.metadata.dtype == "uint8":
            unit = chosen / 255
        elif mean == stored.mean and std == stored.std:
            return chosen
        else:
            unit = chosen * _per_channel(stored.std, chosen.device) + _per_channel(stored.mean, chosen.device)
        return (unit - _per_channel(mean, chosen.device)) / _per_channel(std, chosen.device)


def check_range(dtype: ImageDtype, input: InputSpec) -> None:
    """Find out before the long work whether images of a network fit into their type.

    Raises:
        InputError: normalised pixels may be too large for float16.
    """
    largest = max(_FARTHEST / std for std in input.std)
    if dtype == "float16" and largest > torch.finfo(torch.float16).max:
        raise InputError(
            f"Images of this network do not fit into float16: with a standard deviation of {min(input.std):g} pixels "
            f"lie up to {largest:.3g} from their mean. Store them as pixels, with --set image_dtype=uint8."
        )


def encode_images(images: Tensor, dtype: ImageDtype, input: InputSpec) -> Tensor:
    """Images as they are stored.

    Args:
        images: float32 [n, C, H, W], normalised by the mean and std of `input`.
        dtype: "float16" stores them as they are, "uint8" as pixels, clipped to 0..255 and rounded.
        input: the network's input.

    Returns:
        [n, C, H, W] of `dtype` on the device of `images`.

    Raises:
        InputError: images with NaN or infinity, or too large for float16.
    """
    if dtype == "float16":
        encoded = images.to(torch.float16)
        _refuse_not_finite(encoded, "The images")
        return encoded
    # Converting NaN to an integer would hide it.
    _refuse_not_finite(images, "The images")
    unit = images * _per_channel(input.std, images.device) + _per_channel(input.mean, images.device)
    return (unit * 255).round().clamp(0, 255).to(torch.uint8)


def image_set(images: Tensor, metadata: ImagesMetadata) -> ImageSet:
    """Images ``[n, C, H, W]`` as `encode_images` gives them, with the hash of the file that holds them."""
    return ImageSet(images, metadata, hashlib.sha256(serialize({"images": images}, metadata)).hexdigest())


def save_images(path: Path, images: Tensor, metadata: ImagesMetadata) -> None:
    """Write an image set wholly or not at all; the same content gives the same bytes.

    Args:
        path: file to write.
        images: [n, C, H, W] as `encode_images` gives it.
        metadata: must describe `images`.

    Raises:
        InputError: images that `load_images` would refuse, or a file that cannot be written.
    """
    _check(images, metadata, path)
    atomic_write_bytes(path, serialize({"images": images}, metadata))


def load_images(path: Path) -> ImageSet:
    """Read and validate an image set.

    Raises:
        InputError: not an image set that this genie reads, or a tensor that does not fit its metadata.
    """
    # `read` explains a path that is not a file.
    sha256 = file_sha256(path) if path.is_file() else ""
    tensors, fields = read(path, "images")
    metadata = validate(ImagesMetadata, fields, path)
    if set(tensors) != {"images"}:
        raise InputError(f"{path} must hold one tensor 'images', it holds {', '.join(sorted(tensors)[:5]) or 'none'}.")
    _check(tensors["images"], metadata, path)
    return ImageSet(tensors["images"], metadata, sha256)


def _check(images: Tensor, metadata: ImagesMetadata, path: Path) -> None:
    if images.dtype != _DTYPES[metadata.dtype]:
        raise InputError(f"{path}: tensor 'images' is {images.dtype}, its metadata say {metadata.dtype}.")
    expected = [metadata.num_images, *metadata.input.shape]
    if list(images.shape) != expected:
        raise InputError(f"{path}: tensor 'images' has shape {list(images.shape)}, its metadata say {expected}.")
    _refuse_not_finite(images, f"{path}: tensor 'images'")


def _refuse_not_finite(images: Tensor, where: str) -> None:
    if not all_finite(images):
        raise InputError(f"{where} must be finite; NaN or infinity was found: make the images again.")


def _index(indices: Tensor | Sequence[int] | slice | None) -> Tensor | slice:
    if indices is None:
        return slice(None)
    if isinstance(indices, Tensor):
        return indices.cpu()
    # Converted, because a tuple would index dimensions and an empty list would be floating point.
    return indices if isinstance(indices, slice) else torch.tensor(list(indices), dtype=torch.int64)


def _numbers(name: str, given: float | Sequence[float], num_channels: int) -> tuple[float, ...]:
    """The finite numbers that are given, and one number once per channel.

    Raises:
        UsageError: something else.
    """
    try:
        numbers = torch.as_tensor(given, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.tensor(math.nan, dtype=torch.float64, device="cpu")
    if numbers.dim() > 1 or not numbers.isfinite().all():
        raise UsageError(f"{name} = {given!r:.80} cannot be used: give a finite number for each channel, or one.")
    return tuple((numbers.expand(num_channels) if numbers.dim() == 0 else numbers).tolist())


def _per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(tuple(values), dtype=torch.float32, device=device).view(-1, 1, 1)
