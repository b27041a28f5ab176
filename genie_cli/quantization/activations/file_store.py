"""Activations in a temporary file, where memory has no room for them."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from contextlib import suppress
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from genie_cli.errors import DiskFullError, InputError
from genie_cli.quantization.activations.staging import Staging
from genie_cli.quantization.activations.store import ActivationStore
from genie_cli.runtime.full_disk import is_full
from genie_cli.runtime.memory import format_size

_HAS_POSITIONED = hasattr(os, "preadv") and hasattr(os, "pwrite")
_NO_PREALLOCATION = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class FileStore(ActivationStore):
    """Rows in a temporary file, read and written by position.

    The file is not mapped into memory: mapped pages count as resident memory of this process once they
    are touched, and the point of the file is that the process stays small. What the system caches of the
    file is its own, and given up when memory is needed.

    The file loses its name as soon as it is open, where the system allows that, so that a run that is
    killed leaves nothing behind.
    """

    place = "disk"

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, staging: Staging, parent: Path | None) -> None:
        """Make the file in `parent`; None: in the system's folder for temporary files."""
        super().__init__(shape, dtype, staging)
        self._row_bytes = self._row_numel * dtype.itemsize
        self._parent = parent
        try:
            self._parent = self._parent or Path(tempfile.gettempdir())
            # Systems that refuse to remove the name of an open file keep it until `_free` tries again.
            self._folder = tempfile.TemporaryDirectory(prefix="genie-", dir=self._parent, ignore_cleanup_errors=True)
            self._file = FileIO(Path(self._folder.name) / "activations", "x+")
        except OSError as error:
            raise self._unusable(error) from error
        self._folder.cleanup()
        try:
            self._preallocate()
        except OSError as error:
            self._free()
            raise self._unusable(error) from error

    def _preallocate(self) -> None:
        """Have the file system set the bytes aside, or at least compare them with those that are free."""
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._file.fileno(), 0, self.num_bytes)
            except OSError as error:
                if error.errno not in _NO_PREALLOCATION:
                    raise
            else:
                return
        assert self._parent is not None
        if shutil.disk_usage(self._parent).free < self.num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._file.truncate(self.num_bytes)

    def _put(self, first: int, rows: Tensor) -> None:
        try:
            for part in rows.split(self._rows_per_chunk):
                _write_at(self._file, _bytes(part.to("cpu", self.dtype).contiguous().view(-1)), first * self._row_bytes)
                first += len(part)
        except OSError as error:
            raise self._unusable(error) from error

    def _fill(self, out: Tensor, selection: range | Tensor) -> None:
        view, size = _bytes(out), self._row_bytes
        try:
            if isinstance(selection, range):
                _read_at(self._file, view, selection.start * size)
            else:
                for position, index in enumerate(selection.tolist()):
                    _read_at(self._file, view[position * size : (position + 1) * size], index * size)
        except OSError as error:
            raise self._unusable(error) from error

    def _free(self) -> None:
        with suppress(OSError):  # what could not be written is no longer wanted
            self._file.close()
        self._folder.cleanup()

    def _unusable(self, error: OSError) -> InputError:
        free = ""
        if self._parent is not None:
            with suppress(OSError):
                free = f", {format_size(shutil.disk_usage(self._parent).free)} are free"
        kind = DiskFullError if is_full(error) else InputError
        return kind(
            f"Temporary folder {self._parent or ''} cannot hold {format_size(self.num_bytes)} of activations{free}: "
            f"{error.strerror or error}. Raise --memory-limit, or name a folder with more room in TMPDIR."
        )


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor; NumPy has no bfloat16, so it goes as bytes."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().data


def _read_at(file: FileIO, view: memoryview, offset: int) -> None:
    """Fill `view` from a position of the file; one call may read less (Linux: at most 2 GiB)."""
    while view:
        if _HAS_POSITIONED:
            count = os.preadv(file.fileno(), [view], offset)
        else:
            file.seek(offset)
            count = file.readinto(view)
        if count == 0:
            raise OSError(errno.EIO, "the file ended early")
        view, offset = view[count:], offset + count


def _write_at(file: FileIO, view: memoryview, offset: int) -> None:
    """Write all of `view` at a position of the file; one call may write less."""
    while view:
        if _HAS_POSITIONED:
            count = os.pwrite(file.fileno(), view, offset)
        else:
            file.seek(offset)
            count = file.write(view)
        view, offset = view[count:], offset + count
