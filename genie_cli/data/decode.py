"""Decode image files into the pixels of a network's input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from genie_cli.config import InputSpec
from genie_cli.data.value_range import READ_ERRORS, Range, in_8_bits
from genie_cli.errors import InputError

Fit = Literal["crop", "whole", "proportions"]
"""The way in which an image gets the size of the input. crop: its shorter side is resized, and the centre cropped.
whole: all of it is resized, whatever its proportions. proportions: whole where it has those of the input (to 1 %),
else crop."""
_SAME_PROPORTIONS = 0.01
_DECODED = 64
"""Images that a worker decodes at once where no batch size is given."""


def decode_image(path: Path, spec: InputSpec, ranges: Mapping[str, Range] | None = None, fit: Fit = "crop") -> Tensor:
    """Read, scale to 8 bits, and resize (antialiased) or crop to the size of the input.

    Args:
        path: an image file that Pillow reads.
        spec: channels (1 is grayscale, 3 is RGB), size, resize_size (None: no resize), interpolation.
        ranges: of the set's 32-bit integer and float images, see `value_ranges`; None: the image's own.
        fit: see `Fit`.

    Returns:
        uint8 [spec.num_channels, spec.size, spec.size].

    Raises:
        InputError: the file is not a readable image, or the image is smaller than the crop.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as T

    try:
        with Image.open(path) as file:
            image = in_8_bits(file, path, ranges or {}).convert("L" if spec.num_channels == 1 else "RGB")
    except READ_ERRORS as error:
        reason = "it is not an image" if isinstance(error, UnidentifiedImageError) else str(error).rstrip(".")
        raise InputError(f"Image {path} cannot be read: {reason}.") from None
    original = image.size
    if fit == "whole" or (fit == "proportions" and _has_proportions(image.size, spec)):
        if original != (spec.size, spec.size):
            image = T.resize(image, [spec.size, spec.size], InterpolationMode(spec.interpolation), antialias=True)
        whole: Tensor = T.pil_to_tensor(image)
        return whole
    if spec.resize_size is not None:
        image = T.resize(image, [spec.resize_size], InterpolationMode(spec.interpolation), antialias=True)
    if min(image.size) < spec.size:
        after = f" ({image.width}x{image.height} after its resize)" if image.size != original else ""
        raise InputError(
            f"Image {path} is {original[0]}x{original[1]} pixels{after}, smaller than the {spec.size}x{spec.size} "
            f"crop that the network takes: resize the shorter side to {spec.size} or more."
        )
    pixels: Tensor = T.pil_to_tensor(T.center_crop(image, [spec.size]))
    return pixels


def _has_proportions(size: tuple[int, int], spec: InputSpec) -> bool:
    """True if an image of ``size`` (width, height) has the proportions of the input."""
    width, height = size
    return abs(width * spec.size / (height * spec.size) - 1) <= _SAME_PROPORTIONS


class ImageFiles(Dataset[Tensor | str]):
    """Decoded files for a DataLoader: pixels, or a message that says why there are none.

    Messages are returned and not raised, because a DataLoader would wrap a worker's error in its traceback.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        spec: InputSpec,
        ranges: Mapping[str, Range],
        fit: Fit = "crop",
        num_workers: int = 0,
    ) -> None:
        """Keep the files, all that `decode_image` takes, and the number of processes that decode (0: this one)."""
        self._paths, self._spec, self._ranges, self._fit, self._num_workers = paths, spec, ranges, fit, num_workers

    def __len__(self) -> int:
        """Number of files."""
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor | str:
        """The pixels of a file, uint8 [C, size, size], or the message."""
        try:
            return decode_image(self._paths[index], self._spec, self._ranges, self._fit)
        except InputError as error:
            return str(error)

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """The pixels of each batch of files, uint8 [B, C, size, size].

        Raises:
            InputError: a file that cannot be used.
        """
        from torch.utils.data import DataLoader

        loader = DataLoader(
            self,
            batch_sampler=[list(rows) for rows in batches],
            num_workers=self._num_workers,
            collate_fn=_first_failure_or_stack,
        )
        for pixels in loader:
            if isinstance(pixels, str):
                raise InputError(pixels)
            yield pixels

    def pixels(self, rows: Sequence[int]) -> Tensor:
        """The pixels of some files, uint8 [len(rows), C, size, size].

        Raises:
            InputError: a file that cannot be used.
        """
        return torch.cat(list(self.batches([rows[i : i + _DECODED] for i in range(0, len(rows), _DECODED)])))


def _first_failure_or_stack(items: list[Tensor | str]) -> Tensor | str:
    """Collate: uint8 [B, C, H, W], or the first message."""
    pixels: list[Tensor] = []
    for item in items:
        if isinstance(item, str):
            return item
        pixels.append(item)
    return torch.stack(pixels)
