"""One run per output: a second one is refused while the first is alive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from genie_cli.errors import InputError
from genie_cli.work.folder import ROOT


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock of an output; the system frees it when the process ends, however it ends.

    Raises:
        InputError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    path = out.absolute().parent / ROOT / f"{out.name}.lock"
    descriptor = -1
    try:
        while descriptor < 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            opened = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # whoever held it may have taken the file away: then the lock is on nothing
                if path.exists() and os.path.samestat(os.fstat(opened), path.stat()):
                    descriptor = opened
            finally:
                if descriptor < 0:
                    os.close(opened)
        with suppress(OSError):  # the number serves a message alone, and the disk may be full
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
    except BlockingIOError:
        raise InputError(
            f"{out} is being written by another run{_by(path)}: wait until it ends, or choose another --out."
        ) from None
    except OSError as error:
        with suppress(OSError):
            path.parent.rmdir()
        raise InputError(f"Lock file {path} cannot be made: {error.strerror}.") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        with suppress(OSError):
            path.parent.rmdir()


def is_locked(out: Path) -> bool:
    """True if a living process writes this output."""
    path = out.absolute().parent / ROOT / f"{out.name}.lock"
    if not path.exists():
        return False
    try:
        with locked(out):
            return False
    except InputError:
        return True


def _by(path: Path) -> str:
    with suppress(OSError, ValueError):
        return f" (process {int(path.read_text())})"
    return ""
