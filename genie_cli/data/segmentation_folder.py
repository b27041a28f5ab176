"""Images with a class per pixel: image files, and class maps as PNG files of the same names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genie_cli.config import InputSpec
from genie_cli.data.decode import ImageFiles
from genie_cli.data.image_files import FileSamples, check_channels, check_folder, range_notes
from genie_cli.data.paired_files import paired_files
from genie_cli.data.samples import Task
from genie_cli.data.value_range import READ_ERRORS, value_ranges
from genie_cli.errors import InputError

_LAYOUT = (
    "it must hold images and a class map of each, a PNG file of the same name: FOLDER/images/1.jpg and "
    "FOLDER/masks/1.png, or FOLDER/1.jpg and FOLDER/1.png"
)
_BESIDE = ("masks", "labels", "annotations")
_MAP_MODES = ("1", "L", "P", "I", "I;16")
"""Modes of Pillow with one number per pixel; that of a palette image is the number of its colour."""


class SegmentationFolder(FileSamples):
    """Images with class maps of their own size: int64 ``[B, H, W]``, or a list of ``[H, W]`` where sizes differ."""

    task: Task | None = "segmentation"
    has_targets = True

    def __init__(self, pairs: Sequence[tuple[Path, Path]], files: ImageFiles, spec: InputSpec) -> None:
        """Keep the files.

        Args:
            pairs: images with their class maps.
            files: the images, as they are decoded.
            spec: the network's input.
        """
        super().__init__([image for image, _ in pairs], files, spec)
        self._maps = [class_map for _, class_map in pairs]

    def targets(self, rows: Sequence[int]) -> Tensor | list[Tensor]:
        """The class maps of some images."""
        maps = [_read_map(self._maps[row]) for row in rows]
        return torch.stack(maps) if len({each.shape for each in maps}) == 1 else maps


def open_segmentation_folder(
    folder: Path, spec: InputSpec, num_workers: int = 0, num_images: int | None = None
) -> SegmentationFolder:
    """Images and class maps, in the sorted order of the images' names.

    An image is resized to the network's input as a whole, with its interpolation. Its class map is not.

    Args:
        folder: holds both, see `paired_files`.
        spec: the network's input.
        num_workers: processes that decode images; 0 decodes in this one.
        num_images: number of images to keep, from the first on; None: all.

    Raises:
        InputError: no such folder, no images in it, an image without a class map, a class map that has not the size of
            its image or not one number per pixel, or a network that takes neither one nor three channels.
    """
    check_channels(spec)
    check_folder(folder, _LAYOUT)
    found, num_alone = paired_files(folder, _BESIDE, (".png",))
    if not found:
        raise InputError(f"Folder {folder} holds no images with class maps: {_LAYOUT}.")
    pairs: list[tuple[Path, Path]] = []
    for image, class_map in list(found.items())[:num_images]:
        if class_map is None:
            raise InputError(f"Image {image} has no class map: {_LAYOUT}.")
        _check_pair(image, class_map)
        pairs.append((image, class_map))
    ranges = value_ranges(list(found))
    files = ImageFiles([image for image, _ in pairs], spec, ranges, "whole", num_workers)
    samples = SegmentationFolder(pairs, files, spec)
    samples.notes = range_notes(folder, ranges)
    if num_alone:
        samples.warnings = (f"{num_alone} class maps in {folder} belong to no image.",)
    return samples


def _check_pair(image: Path, class_map: Path) -> None:
    """Compare what the two files say of themselves, without reading their pixels."""
    with _opened(image, "Image") as opened:
        size = opened.size
    with _opened(class_map, "Class map") as opened:
        if opened.mode not in _MAP_MODES:
            raise InputError(
                f"Class map {class_map} holds colours ({opened.mode}) and must hold one number per pixel, its class: "
                "write it as a gray or palette PNG."
            )
        if opened.size != size:
            raise InputError(
                f"Class map {class_map} is {opened.width}x{opened.height} pixels and its image {image.name} is "
                f"{size[0]}x{size[1]}: both must have the same size."
            )


def _opened(path: Path, what: str) -> Image.Image:
    try:
        return Image.open(path)
    except READ_ERRORS as error:
        raise InputError(f"{what} {path} cannot be read: {str(error).rstrip('.')}.") from None


def _read_map(path: Path) -> Tensor:
    try:
        with Image.open(path) as opened:
            values = np.asarray(opened).astype(np.int64)
    except READ_ERRORS as error:
        raise InputError(f"Class map {path} cannot be read: {str(error).rstrip('.')}.") from None
    return torch.from_numpy(values)
