"""Files that cannot be written: a full disk told apart from other reasons, each with its fix."""

from __future__ import annotations

import errno
from pathlib import Path

from genie_cli.errors import DiskFullError, InputError

FULL = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of the quota there",
    errno.EFBIG: "allow larger files (ulimit -f)",
}
"""Reasons of the system for which a file cannot grow -> the fix."""


def is_full(error: BaseException) -> bool:
    """True if a file could not grow: a full disk, a quota, a limit on the size of files."""
    return isinstance(error, OSError) and error.errno in FULL


def unwritable(path: Path, error: OSError | ValueError) -> InputError:
    """The error that says why `path` cannot be written."""
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, OSError) and error.errno in FULL:
        return DiskFullError(f"{path} cannot be written: {reason}: {FULL[error.errno]}.")
    return InputError(f"{path} cannot be written: {reason}.")
