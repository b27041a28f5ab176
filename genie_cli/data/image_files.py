"""Image files in folders: which they are, and samples that are decoded when their batch is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from genie_cli.config import InputSpec
from genie_cli.data.decode import ImageFiles
from genie_cli.data.normalize import normalize_pixels
from genie_cli.data.samples import CountedSamples
from genie_cli.data.value_range import Range
from genie_cli.errors import InputError

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class FileSamples(CountedSamples):
    """Images of files, without targets; a subclass knows theirs."""

    has_targets = False

    def __init__(self, paths: Sequence[Path], files: ImageFiles, spec: InputSpec) -> None:
        """Keep the files.

        Args:
            paths: the n image files.
            files: the same, as they are decoded.
            spec: the network's input.
        """
        self.paths, self._files, self._spec = paths, files, spec

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.paths)

    def targets(self, rows: Sequence[int]) -> Any:
        """The targets of some images, see `Samples.task`."""
        return None

    def batches(self, batch_size: int, share: range | None = None) -> Iterator[tuple[Tensor, Any]]:
        """Go once through the images, see `Samples.batches`."""
        batches = self.rows(batch_size, share)
        for rows, pixels in zip(batches, self._files.batches(batches), strict=True):
            yield normalize_pixels(pixels, self._spec), self.targets(rows)

    def pixels(self, rows: Sequence[int]) -> Tensor:
        """Some images, see `CountedSamples.pixels`."""
        return self._files.pixels(rows)


def check_channels(spec: InputSpec) -> None:
    """Refuse a network that image files cannot be made for.

    Raises:
        InputError: it takes neither one nor three channels.
    """
    if spec.num_channels not in (1, 3):
        raise InputError(
            f"Image files give 1 or 3 channels, and the network takes {spec.num_channels}: "
            "use a .safetensors file with images and labels, or FILE.py:FACTORY."
        )


def check_folder(folder: Path, layout: str) -> None:
    """Refuse a folder that is not there; `layout` says what it should hold.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"Image folder {folder} does not exist: {layout}.")


def images_below(folder: Path) -> list[Path]:
    """The image files in a folder and in those inside it, sorted; names that start with a dot are skipped."""
    return files_below(folder, EXTENSIONS)


def files_below(folder: Path, extensions: Sequence[str]) -> list[Path]:
    """The files of some kinds in a folder and in those inside it, see `images_below`."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in extensions and not path.is_dir())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def is_image(path: Path) -> bool:
    """True if the name is that of an image file; a broken link counts, and reading it names it in an error."""
    return path.suffix.lower() in EXTENSIONS and not path.is_dir()


def range_notes(folder: Path, ranges: Mapping[str, Range]) -> tuple[str, ...]:
    """Notes on the values that are taken as black and white, see `value_range.value_ranges`."""
    return tuple(
        f"images of {kind} in {folder}: {low:g} is taken as black and {high:g} as white."
        for kind, (low, high) in ranges.items()
    )
