"""Activations of all calibration images: on the device, in host memory or in a file, against a budget.

Rows lie one after the other with the channels last inside a row (``[n, H, W, C]``), wherever they are:
taking a row is one contiguous copy, and what is handed out is a permuted view of the taken rows.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor

from genie_cli.artifacts.disk import is_full
from genie_cli.errors import DiskFullError, InputError
from genie_cli.runtime.memory import format_size
from genie_cli.runtime.progress import Note, Reporter, silent
from genie_cli.runtime.shortage import is_out_of_memory

Place = Literal["device", "host", "disk"]

_CHUNK_BYTES = 16 << 20
"""Bytes, rounded down to whole rows and at least one, that are on the way to or from a file or a GPU at once."""
_HAS_POSITIONED = hasattr(os, "preadv") and hasattr(os, "pwrite")
_NO_PREALLOCATION = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class ActivationStore(ABC):
    """n rows (one per calibration image) of one tensor of the network, on the device, in host memory or in a file.

    What is read is always a copy: it stays as it is when the store is written to or released.

    Attributes:
        shape: logical shape, ``[n, C, ...]`` or ``[n, F]``.
        dtype: of the rows.
        place: where the rows are.
        num_bytes: what the store takes there.
    """

    place: Place

    def __init__(self, pool: ActivationPool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Stores are made by `ActivationPool.allocate`; the rows are undefined until written."""
        self.shape = shape
        self.dtype = dtype
        self.num_bytes = math.prod(shape) * dtype.itemsize
        self._pool = pool
        self._released = False
        self._row_numel = math.prod(shape[1:])
        self._rows_a_chunk = max(1, _CHUNK_BYTES * shape[0] // self.num_bytes)

    def __len__(self) -> int:
        """Number of rows."""
        return self.shape[0]

    def write(self, first: int, rows: Tensor) -> None:
        """Put rows at their place.

        Args:
            first: index of the first row.
            rows: ``[k, ...]``, on any device, in any memory format; converted to the store's dtype.

        Raises:
            ValueError: rows of another shape.
            IndexError: rows beyond the end.
            InputError: the file cannot be written.
            RuntimeError: the store is released.
        """
        self._check_open()
        if tuple(rows.shape[1:]) != self.shape[1:]:
            raise ValueError(f"rows of shape {tuple(rows.shape)} do not fit a store of shape {self.shape}")
        self._check_range(first, first + len(rows))
        rows = rows.detach()
        self._put(first, rows.movedim(1, -1) if rows.dim() > 2 else rows)

    def read(self, first: int, last: int) -> Tensor:
        """Rows `first` up to but without `last`, on the device.

        Returns:
            ``[last - first, ...]``; from three dimensions on in channels-last strides (dim 1 is fastest).

        Raises:
            IndexError: rows that there are not.
            InputError: the file cannot be read.
            RuntimeError: the store is released.
        """
        self._check_open()
        self._check_range(first, last)
        return self._take(range(first, last))

    def gather(self, indices: Tensor) -> Tensor:
        """The rows of `indices`, a 1-d int64 tensor on the CPU; otherwise as `read`."""
        self._check_open()
        if indices.dim() != 1 or indices.dtype != torch.int64 or indices.device.type != "cpu":
            raise ValueError(f"indices must be 1-d, int64, on the CPU; got {tuple(indices.shape)}, {indices.dtype}")
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(f"indices outside the store's {len(self)} rows")
        return self._take(indices)

    def release(self) -> None:
        """Give the memory or the file back to the pool; again does nothing. No reads after that."""
        if not self._released:
            self._released = True
            self._free()
            self._pool._take_back(self)

    @abstractmethod
    def _put(self, first: int, rows: Tensor) -> None:
        """Store rows whose channels are the last dimension."""

    @abstractmethod
    def _fill(self, out: Tensor, selection: range | Tensor) -> None:
        """Copy the selected rows to `out` ``[k, row_numel]``, on the device for that place, else on the CPU."""

    @abstractmethod
    def _free(self) -> None:
        """Drop the memory or the file."""

    def _take(self, selection: range | Tensor) -> Tensor:
        device = self._pool.device
        out = torch.empty((len(selection), self._row_numel), dtype=self.dtype, device=device)
        if self.place == "device" or device.type == "cpu":
            self._fill(out, selection)
        else:
            self._pool._staging.upload(
                out, self._rows_a_chunk, lambda buffer, part: self._fill(buffer, selection[part])
            )
        if len(self.shape) < 3:
            return out.view(len(selection), *self.shape[1:])
        return out.view(len(selection), *self.shape[2:], self.shape[1]).movedim(-1, 1)

    def _check_open(self) -> None:
        if self._released:
            raise RuntimeError(f"this activation store of shape {self.shape} has been released")

    def _check_range(self, first: int, last: int) -> None:
        if not 0 <= first <= last <= len(self):
            raise IndexError(f"rows {first} to {last} are outside the store's {len(self)} rows")


class _MemoryStore(ActivationStore):
    """Rows in the device's or the host's memory."""

    def __init__(self, pool: ActivationPool, shape: tuple[int, ...], dtype: torch.dtype, place: Place) -> None:
        super().__init__(pool, shape, dtype)
        self.place = place
        if place == "device":
            self._rows = torch.empty((len(self), self._row_numel), dtype=dtype, device=pool.device)
        else:
            # Pages of their own: from the heap, a set would leave a hole that a step's tensors fill and split.
            self._rows = torch.frombuffer(_anonymous_memory(self.num_bytes), dtype=dtype).view(len(self), -1)

    def _put(self, first: int, rows: Tensor) -> None:
        self._rows[first : first + len(rows)].view(rows.shape).copy_(rows)

    def _fill(self, out: Tensor, selection: range | Tensor) -> None:
        if isinstance(selection, range):
            out.copy_(self._rows[selection.start : selection.stop])
        else:
            torch.index_select(self._rows, 0, selection.to(self._rows.device), out=out)

    def _free(self) -> None:
        del self._rows


class _FileStore(ActivationStore):
    """Rows in a temporary file, read and written by position.

    The file is not mapped into memory: mapped pages count as resident memory of this process once they
    are touched, and the point of the file is that the process stays small. What the system caches of the
    file is its own, and given up when memory is needed.

    The file loses its name as soon as it is open, where the system allows that, so that a run that is
    killed leaves nothing behind.
    """

    place = "disk"

    def __init__(self, pool: ActivationPool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__(pool, shape, dtype)
        self._row_bytes = self._row_numel * dtype.itemsize
        self._parent = pool.folder
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
            for part in rows.split(self._rows_a_chunk):
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


def _anonymous_memory(num_bytes: int) -> mmap.mmap:
    """Memory outside the heap, returned to the system once nothing refers to it; in huge pages where there are any."""
    memory = mmap.mmap(-1, num_bytes)
    with suppress(AttributeError, OSError):  # other systems
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


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


class _Staging:
    """Two page-locked buffers through which rows go to a GPU: one is filled while the other is copied."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers = [torch.empty(0, dtype=torch.uint8)] * 2
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def upload(self, out: Tensor, rows_a_chunk: int, fill: Callable[[Tensor, slice], None]) -> None:
        """Copy rows to `out` ``[k, row_numel]`` on the device, asynchronously.

        Args:
            out: the device's memory.
            rows_a_chunk: rows that go together.
            fill: called with a buffer and the rows of `out` that it is to be filled for.
        """
        for first in range(0, len(out), rows_a_chunk):
            part = slice(first, min(first + rows_a_chunk, len(out)))
            target = out[part]
            self._turn = 1 - self._turn
            copied = self._copied[self._turn]
            if copied is not None:
                copied.synchronize()  # the buffer's last copy may still be under way
            size = target.numel() * out.dtype.itemsize
            if self._buffers[self._turn].numel() < size:
                self._buffers[self._turn] = _page_locked(size)
            buffer = self._buffers[self._turn][:size].view(out.dtype).view(target.shape)
            fill(buffer, part)
            target.copy_(buffer, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
            self._copied[self._turn] = event


def _page_locked(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


class ActivationPool:
    """Hands out stores: the fastest place that has room, against a budget for each.

    The order is device, host, disk; on a CPU there is no device's place, and `device_budget` says
    nothing. The disk has no budget but its free space. Budgets hold for the stores, not for what is
    read from them, nor for two buffers of one chunk (16 MiB, or one row where that is more) under CUDA.

    Attributes:
        device: where rows are read to.
        folder: what holds the files; None: the system's folder for temporary files.
    """

    def __init__(
        self,
        device: torch.device,
        device_budget: int,
        host_budget: int,
        folder: Path | None = None,
        report: Reporter = silent,
    ) -> None:
        """An empty pool; budgets in bytes; `report` receives a warning where memory has less room than its budget."""
        self.device = device
        self.folder = folder
        self._report = report
        self._budgets: dict[Place, int] = {"host": host_budget}
        if device.type != "cpu":
            self._budgets = {"device": device_budget, "host": host_budget}
        self._stores: set[ActivationStore] = set()
        self._in_use: dict[str, int] = {"device": 0, "host": 0, "disk": 0}
        self._peak = dict(self._in_use)
        self._staging = _Staging(device)
        self._closed = False

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> ActivationStore:
        """A store of logical shape `shape`, ``[n, C, ...]`` or ``[n, F]``, in the fastest place with room.

        It takes its bytes from the budget until it is released or the pool is closed.

        Raises:
            ValueError: a shape without elements.
            InputError: the disk is needed and has no room, or cannot be written to.
            RuntimeError: the pool is closed.
        """
        if self._closed:
            raise RuntimeError("this activation pool is closed")
        shape = tuple(shape)
        if not shape or min(shape) < 1:
            raise ValueError(f"a store needs rows with elements, got shape {shape}")
        store = self._in_memory(shape, dtype)
        if store is None:
            store = _FileStore(self, shape, dtype)
        self._stores.add(store)
        self._in_use[store.place] += store.num_bytes
        self._peak[store.place] = max(self._peak[store.place], self._in_use[store.place])
        return store

    def _in_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> ActivationStore | None:
        num_bytes = math.prod(shape) * dtype.itemsize
        for place, budget in self._budgets.items():
            if self._in_use[place] + num_bytes <= budget:
                try:
                    return _MemoryStore(self, shape, dtype, place)
                except (RuntimeError, MemoryError, OSError) as error:
                    if not isinstance(error, OSError) and not is_out_of_memory(error):
                        raise
                # Other programs, or a limit that the budget did not know of, have taken the memory.
                self._budgets = {**self._budgets, place: self._in_use[place]}
                below = "host memory" if place == "device" else "a temporary file"
                self._report(
                    Note(
                        f"no room for {format_size(num_bytes)} of activations in {place} memory: they go to {below}.",
                        warning=True,
                    )
                )
        return None

    @property
    def in_use(self) -> dict[str, int]:
        """Bytes of the stores that are not released, by place: ``device``, ``host``, ``disk``."""
        return dict(self._in_use)

    @property
    def peak(self) -> dict[str, int]:
        """The most bytes in use at once so far, by place; each place has its own moment."""
        return dict(self._peak)

    def close(self) -> None:
        """Release every store and the buffers; again does nothing. Nothing can be allocated after that."""
        self._closed = True
        for store in list(self._stores):
            store.release()
        self._staging = _Staging(self.device)

    def __enter__(self) -> ActivationPool:
        """The pool itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the pool."""
        self.close()

    def _take_back(self, store: ActivationStore) -> None:
        self._stores.discard(store)
        self._in_use[store.place] -= store.num_bytes
