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
from genie_cli.config.image_size import height_and_width
from genie_cli.data.value_range import READ_ERRORS, Range, in_8_bits
from genie_cli.errors import InputError

Fit = Literal["crop", "whole", "proportions"]
"""The way in which an image gets the size of the input. crop: it is resized until the resize size is covered, and the
centre cropped. whole: all of it is resized, whatever its proportions. proportions: whole where it has those of the
input (to 1 %), else crop."""
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
        uint8 [spec.num_channels, spec.height, spec.width].

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
        if original != (spec.width, spec.height):
            sides = [spec.height, spec.width]
            image = T.resize(image, sides, InterpolationMode(spec.interpolation), antialias=True)
        whole: Tensor = T.pil_to_tensor(image)
        return whole
    if spec.resize_size is not None:
        sides = _covering(image.height, image.width, *height_and_width(spec.resize_size))
        image = T.resize(image, sides, InterpolationMode(spec.interpolation), antialias=True)
    if image.height < spec.height or image.width < spec.width:
        is_square = spec.height == spec.width
        mend = f"resize the shorter side to {spec.width}" if is_square else "resize it to that size"
        after = f" ({image.width}x{image.height} after its resize)" if image.size != original else ""
        raise InputError(
            f"Image {path} is {original[0]}x{original[1]} pixels{after}, smaller than the {spec.width}x{spec.height} "
            f"crop that the network takes (width x height): {mend} or more."
        )
    pixels: Tensor = T.pil_to_tensor(T.center_crop(image, [spec.height, spec.width]))
    return pixels


def _has_proportions(size: tuple[int, int], spec: InputSpec) -> bool:
    """True if an image of ``size`` (width, height) has the proportions of the input."""
    width, height = size
    return abs(width * spec.height / (height * spec.width) - 1) <= _SAME_PROPORTIONS


def _covering(height: int, width: int, least_height: int, least_width: int) -> list[int]:
    """Height and width of an image, its proportions kept, of which one side is the least and the other not below."""
    if height * least_width < width * least_height:  # the height is what is missing
        return [least_height, int(least_height * width / height)]
    return [int(least_width * height / width), least_width]


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
        """The pixels of a file, uint8 [C, H, W], or the message."""
        try:
            return decode_image(self._paths[index], self._spec, self._ranges, self._fit)
        except InputError as error:
            return str(error)

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """The pixels of each batch of files, uint8 [B, C, H, W].

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
        """The pixels of some files, uint8 [len(rows), C, H, W].

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
