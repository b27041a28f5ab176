"""Images and the files of their targets, which have the same name but for its ending."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genie_cli.data.image_files import files_below, images_below

IMAGES = "images"
"""Folder of the images, where the targets have one of their own."""


def paired_files(folder: Path, beside: Sequence[str], endings: Sequence[str]) -> tuple[dict[Path, Path | None], int]:
    """Each image with the file of its targets, sorted; two layouts are known.

    ``FOLDER/images/a/1.jpg`` belongs to ``FOLDER/<beside>/a/1.<ending>``. Without a folder ``images``,
    ``FOLDER/a/1.jpg`` belongs to ``FOLDER/a/1.<ending>``, and a file with such an ending is no image.

    Args:
        folder: holds both.
        beside: names that the folder of the targets may have.
        endings: of the files of targets, such as ``.png``.

    Returns:
        Image -> file of its targets, or None where there is none; number of files of targets without an image.
    """
    images_in, targets_in = folder, folder
    if (folder / IMAGES).is_dir():
        images_in = folder / IMAGES
        targets_in = next((folder / name for name in beside if (folder / name).is_dir()), folder / beside[0])
    is_one_folder = images_in == targets_in
    targets = {_stem(path, targets_in): path for path in files_below(targets_in, endings)}
    images = [path for path in images_below(images_in) if not (is_one_folder and path.suffix.lower() in endings)]
    pairs = {path: targets.get(_stem(path, images_in)) for path in images}
    return pairs, len(set(targets.values()) - set(pairs.values()))


def _stem(path: Path, folder: Path) -> Path:
    return path.relative_to(folder).with_suffix("")
