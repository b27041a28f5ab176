"""Room on disks: what a run needs of it, whether it is there, and what to do where it has run out."""

from __future__ import annotations

import errno
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from genie_cli.errors import DiskFullError, InputError
from genie_cli.sizes import format_size

FULL = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of the quota there",
    errno.EFBIG: "allow larger files (ulimit -f)",
}
"""Reasons of the system for which a file cannot grow -> the fix."""
TENSOR_BYTES = 128
"""Bytes of a file per tensor beside the tensor's values, roughly: name, type, shape and place."""
_MARGIN = 1.05
"""Over what is counted: headers of files, and their last blocks."""


@dataclass(frozen=True)
class DiskNeed:
    """Bytes that a run holds at most at once.

    Attributes:
        beside_output: in the output's folder: the output and what is kept to go on from.
        temporary: in the folder for temporary files, by this process.
    """

    beside_output: int
    temporary: int = 0


def check_room(out: Path, need: DiskNeed, held: int = 0) -> None:
    """Find out before the work whether the disks have room for it.

    Args:
        out: the output.
        need: what the run takes.
        held: bytes of `need.beside_output` that an earlier run has left there.

    Raises:
        InputError: a disk has less room than is needed on it, or there is no folder for temporary files.
    """
    beside = max(0, int(need.beside_output * _MARGIN) - held)
    temporary = int(need.temporary * _MARGIN)
    folder = out.absolute().parent
    _check(folder, beside, "for the output and what is kept to go on from", "choose an --out on another disk")
    if not temporary:
        return
    try:
        other = Path(tempfile.gettempdir())
    except OSError as error:
        raise InputError(f"There is no folder for temporary files: {error.strerror}. Name one in TMPDIR.") from error
    mend = "name a folder with more room in TMPDIR, or raise --memory-limit, which keeps more in memory"
    if _existing(other).stat().st_dev == _existing(folder).stat().st_dev:
        what = f"for activations ({format_size(temporary)}) and, on the same disk, for what goes beside {out}"
        _check(other, beside + temporary, what, mend)
    else:
        _check(other, temporary, "for activations", mend)


def is_full(error: BaseException) -> bool:
    """True if a file could not grow: a full disk, a quota, a limit on the size of files."""
    return isinstance(error, OSError) and error.errno in FULL


def unwritable(path: Path, error: OSError | ValueError) -> InputError:
    """The error that says why `path` cannot be written."""
    reason = getattr(error, "strerror", None) or str(error)
    if is_full(error):
        mend = FULL[error.errno]  # type: ignore[union-attr, index]
        return DiskFullError(f"{path} cannot be written: {reason}: {mend}.")
    return InputError(f"{path} cannot be written: {reason}.")


def _check(folder: Path, needed: int, what: str, mend: str) -> None:
    free = _free(folder)
    if free is not None and free < needed:
        raise InputError(
            f"{folder} has {format_size(free)} of free space, and this run needs {format_size(needed)} there {what}: "
            f"free some, or {mend}."
        )


def _free(folder: Path) -> int | None:
    """Bytes that this user can still write in the folder's file system; None where it does not tell."""
    try:
        usage = shutil.disk_usage(_existing(folder))
    except OSError:
        return None
    return usage.free if usage.total else None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that there is."""
    return next((one for one in (folder, *folder.parents) if one.exists()), folder)
