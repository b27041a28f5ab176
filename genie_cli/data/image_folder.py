"""Image files in one folder per class, prepared as the ImageNet evaluations of torchvision do it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from genie_cli.config import InputSpec
from genie_cli.data.class_order import ClassOrder, in_order
from genie_cli.data.decode import ImageFiles, first_failure_or_stack
from genie_cli.data.labeled import LabeledImages
from genie_cli.data.normalize import normalize_pixels
from genie_cli.data.value_range import value_ranges
from genie_cli.errors import InputError

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_DECODED = 64
"""Images that a worker decodes at once where no batch size is given."""
_LAYOUT = "the layout is FOLDER/class_a/1.jpg, FOLDER/class_a/2.jpg, FOLDER/class_b/1.jpg"


class ImageFolderImages(LabeledImages):
    """Images that are decoded when their batch is asked for, in this process or in workers."""

    def __init__(
        self, files: ImageFiles, labels: Tensor, class_names: list[str], spec: InputSpec, num_workers: int = 0
    ) -> None:
        """Keep the list of files.

        Args:
            files: n image files.
            labels: int64 [n].
            class_names: one name per class.
            spec: the network's input.
            num_workers: processes that decode; 0 decodes in this one.
        """
        super().__init__(labels, len(class_names), class_names)
        self._files = files
        self._spec = spec
        self._num_workers = num_workers

    def batches(self, batch_size: int, share: range | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Go once through the images, see `LabeledImages.batches`."""
        batches = self.rows(batch_size, share)
        for rows, pixels in zip(batches, self._decoded(batches), strict=True):
            yield normalize_pixels(pixels, self._spec), self.labels[rows.start : rows.stop]

    def pixels(self, rows: Sequence[int]) -> Tensor:
        """Some images, see `LabeledImages.pixels`."""
        batches = [rows[first : first + _DECODED] for first in range(0, len(rows), _DECODED)]
        return torch.cat(list(self._decoded(batches)))

    def _decoded(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        from torch.utils.data import DataLoader

        loader = DataLoader(
            self._files,
            batch_sampler=[list(rows) for rows in batches],
            num_workers=self._num_workers,
            collate_fn=first_failure_or_stack,
        )
        for pixels in loader:
            if isinstance(pixels, str):
                raise InputError(pixels)
            yield pixels


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
    if spec.num_channels not in (1, 3):
        raise InputError(
            f"Image files give 1 or 3 channels, and the network takes {spec.num_channels}: "
            "use a .safetensors file with images and labels."
        )
    if not folder.is_dir():
        raise InputError(f"Image folder {folder} does not exist: {_LAYOUT}.")
    names = [entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    classes = [folder / name for name in in_order(names, class_order)]
    if not classes:
        found = "image files but no class folders" if any(_is_image(entry) for entry in folder.iterdir()) else "nothing"
        raise InputError(f"Image folder {folder} holds {found}, and the labels come from class folders: {_LAYOUT}.")
    files = [_images_below(entry) for entry in classes]
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
        ImageFiles(paths[:num_images], spec, ranges),
        torch.tensor(labels[:num_images], dtype=torch.int64),
        [entry.name for entry in classes],
        spec,
        num_workers,
    )
    images.notes = tuple(
        f"images of {kind} in {folder}: {low:g} is taken as black and {high:g} as white."
        for kind, (low, high) in ranges.items()
    )
    return images


def _images_below(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if _is_image(path))
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _is_image(path: Path) -> bool:
    """True if the name is that of an image file; a broken link counts, and reading it names it in an error."""
    return path.suffix.lower() in EXTENSIONS and not path.is_dir()
