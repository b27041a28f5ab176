"""Image files in one folder per class, prepared as the ImageNet evaluations of torchvision do it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from genie_cli.config import InputSpec
from genie_cli.data.class_order import ClassOrder, in_order
from genie_cli.data.decode import ImageFiles
from genie_cli.data.image_files import EXTENSIONS, check_channels, images_below, is_image, range_notes
from genie_cli.data.labeled import LabeledImages
from genie_cli.data.normalize import normalize_pixels
from genie_cli.data.value_range import value_ranges
from genie_cli.errors import InputError

_LAYOUT = "the layout is FOLDER/class_a/1.jpg, FOLDER/class_a/2.jpg, FOLDER/class_b/1.jpg"


class ImageFolderImages(LabeledImages):
    """Images of class folders, decoded when their batch is asked for."""

    def __init__(self, files: ImageFiles, labels: Tensor, class_names: list[str], spec: InputSpec) -> None:
        """Keep the list of files.

        Args:
            files: n image files.
            labels: int64 [n].
            class_names: one name per class.
            spec: the network's input.
        """
        super().__init__(labels, len(class_names), class_names)
        self._files, self._spec = files, spec

    def batches(self, batch_size: int, share: range | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Go once through the images, see `Samples.batches`."""
        batches = self.rows(batch_size, share)
        for rows, pixels in zip(batches, self._files.batches(batches), strict=True):
            yield normalize_pixels(pixels, self._spec), self.labels[rows.start : rows.stop]

    def pixels(self, rows: Sequence[int]) -> Tensor:
        """Some images, see `CountedSamples.pixels`."""
        return self._files.pixels(rows)


def open_image_folder(
    folder: Path,
    spec: InputSpec,
    num_workers: int = 0,
    num_images: int | None = None,
    class_order: ClassOrder = "text",
) -> ImageFolderImages:
    """The images of the class folders in `folder`, classes and files in sorted order.

    Names that start with a dot are skipped.

    Args:
        folder: holds one folder per class.
        spec: the network's input.
        num_workers: processes that decode; 0 decodes in this one.
        num_images: number of images to keep, from the first on; None: all.
        class_order: order of the class folders.

    Raises:
        InputError: no such folder, no class folders, classes without images, or a network that
            takes neither one nor three channels.
    """
    check_channels(spec)
    if not folder.is_dir():
        raise InputError(f"Image folder {folder} does not exist: {_LAYOUT}.")
    names = [entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    classes = [folder / name for name in in_order(names, class_order)]
    if not classes:
        found = "image files but no class folders" if any(is_image(entry) for entry in folder.iterdir()) else "nothing"
        raise InputError(f"Image folder {folder} holds {found}, and the labels come from class folders: {_LAYOUT}.")
    files = [images_below(entry) for entry in classes]
    empty = [entry.name for entry, found in zip(classes, files, strict=True) if not found]
    if empty:
        raise InputError(
            f"Class folders without images in {folder}: {', '.join(empty[:5])}"
            f"{f' and {len(empty) - 5} more' if len(empty) > 5 else ''}; "
            f"put images ({', '.join(EXTENSIONS)}) in, or remove the folders."
        )
    paths = [path for found in files for path in found]
    labels = [label for label, found in enumerate(files) for _ in found]
    ranges = value_ranges(paths)
    images = ImageFolderImages(
        ImageFiles(paths[:num_images], spec, ranges, "crop", num_workers),
        torch.tensor(labels[:num_images], dtype=torch.int64),
        [entry.name for entry in classes],
        spec,
    )
    images.notes = range_notes(folder, ranges)
    return images
