"""Images with boxes: image files, and text files of the same names in YOLO's format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from genie_cli.config import InputSpec
from genie_cli.data.decode import ImageFiles
from genie_cli.data.image_files import FileSamples, check_channels, check_folder, range_notes
from genie_cli.data.paired_files import paired_files
from genie_cli.data.samples import Task
from genie_cli.data.value_range import value_ranges
from genie_cli.errors import InputError

_LAYOUT = (
    "it must hold images, and for each a text file of the same name with its boxes: FOLDER/images/1.jpg and "
    "FOLDER/labels/1.txt, or FOLDER/1.jpg and FOLDER/1.txt"
)
_LINE = "a line is 'class center_x center_y width height', the last four as shares of the image, from 0 to 1"
_BESIDE = ("labels",)
_NUMBERS = 5


class DetectionFolder(FileSamples):
    """Images with one mapping of ``boxes`` and ``labels`` each, see `samples.Task`."""

    task: Task | None = "detection"
    has_targets = True

    def __init__(self, paths: Sequence[Path], boxes: Sequence[Tensor], files: ImageFiles, spec: InputSpec) -> None:
        """Keep files and boxes.

        Args:
            paths: the images.
            boxes: of each image, float64 [k, 5]: class, centre x and y, width, height, as shares.
            files: the images, as they are decoded.
            spec: the network's input.
        """
        super().__init__(paths, files, spec)
        self._boxes = boxes

    def targets(self, rows: Sequence[int]) -> list[dict[str, Tensor]]:
        """The boxes of some images, in pixels of the network's input."""
        size = torch.tensor([self._spec.width, self._spec.height], dtype=torch.float64)
        found = []
        for row in rows:
            labels, center, extent = self._boxes[row].split([1, 2, 2], 1)
            corners = torch.cat([(center - extent / 2) * size, (center + extent / 2) * size], 1)
            found.append({"boxes": corners.float(), "labels": labels[:, 0].long()})
        return found


def open_detection_folder(
    folder: Path, spec: InputSpec, num_workers: int = 0, num_images: int | None = None
) -> DetectionFolder:
    """Images and boxes, in the sorted order of the images' names; an image without a text file has no boxes.

    An image is resized to the network's input as a whole.

    Args:
        folder: holds both, see `paired_files`.
        spec: the network's input.
        num_workers: processes that decode images; 0 decodes in this one.
        num_images: number of images to keep, from the first on; None: all.

    Raises:
        InputError: no such folder, no images in it, no text file at all, a malformed one (its line is named), or a
            network that takes neither one nor three channels.
    """
    check_channels(spec)
    check_folder(folder, _LAYOUT)
    found, num_alone = paired_files(folder, _BESIDE, (".txt",))
    if not any(found.values()):
        raise InputError(f"Folder {folder} holds no images with boxes: {_LAYOUT}.")
    kept = list(found.items())[:num_images]
    boxes = [read_boxes(labels) if labels is not None else torch.zeros(0, _NUMBERS).double() for _, labels in kept]
    paths = [image for image, _ in kept]
    ranges = value_ranges(list(found))
    samples = DetectionFolder(paths, boxes, ImageFiles(paths, spec, ranges, "whole", num_workers), spec)
    without = sum(labels is None for _, labels in kept)
    notes = (f"{without} of {len(kept)} images have no text file, so no boxes.",) if without else ()
    samples.notes = (*notes, *range_notes(folder, ranges))
    if num_alone:
        samples.warnings = (f"{num_alone} text files in {folder} belong to no image.",)
    return samples


def read_boxes(path: Path) -> Tensor:
    """The lines of a text file as float64 ``[k, 5]``: class, centre x and y, width, height; empty lines are skipped.

    Raises:
        InputError: the file cannot be read, or a line is malformed; the message names it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Label file {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        problem, row = _parse(line)
        if problem:
            raise InputError(f"Label file {path}, line {number}: {problem}: {_LINE}.")
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64).view(-1, _NUMBERS)


def _parse(line: str) -> tuple[str, list[float]]:
    """The problem of a line in words, or nothing, and its numbers."""
    words = line.split()
    if len(words) != _NUMBERS:
        return f"it holds {len(words)} values and not {_NUMBERS}", []
    try:
        row = [float(word) for word in words]
    except ValueError:
        return f"'{' '.join(words)}' is not five numbers", []
    label, *shares = row
    if not (math.isfinite(label) and label >= 0 and label == int(label)):
        return f"class {words[0]} is not a whole number from 0 on", []
    for word, share in zip(words[1:], shares, strict=True):
        if not 0 <= share <= 1:
            return f"{word} is no share of the image", []
    return "", row
