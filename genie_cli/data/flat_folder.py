"""A folder of image files without labels: for calibration, and for comparing two networks' outputs."""

from __future__ import annotations

from pathlib import Path

from genie_cli.config import InputSpec
from genie_cli.data.decode import ImageFiles
from genie_cli.data.image_files import (
    EXTENSIONS,
    FileSamples,
    check_channels,
    check_folder,
    images_below,
    range_notes,
)
from genie_cli.data.value_range import value_ranges
from genie_cli.errors import InputError

_LAYOUT = "it must hold image files, in folders or not"


def open_flat_folder(folder: Path, spec: InputSpec, num_workers: int = 0, num_images: int | None = None) -> FileSamples:
    """The images in a folder and in those inside it, in sorted order.

    An image of the input's proportions is resized as a whole. Any other one is resized and cropped as images of class
    folders are.

    Args:
        folder: holds the images.
        spec: the network's input.
        num_workers: processes that decode; 0 decodes in this one.
        num_images: number of images to keep, from the first on; None: all.

    Raises:
        InputError: no such folder, no images in it, or a network that takes neither one nor three channels.
    """
    check_channels(spec)
    check_folder(folder, _LAYOUT)
    paths = images_below(folder)
    if not paths:
        raise InputError(f"Image folder {folder} holds no images ({', '.join(EXTENSIONS)}).")
    ranges = value_ranges(paths)
    kept = paths[:num_images]
    samples = FileSamples(kept, ImageFiles(kept, spec, ranges, "proportions", num_workers), spec)
    samples.notes = range_notes(folder, ranges)
    return samples
