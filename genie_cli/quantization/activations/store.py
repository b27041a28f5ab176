"""Activations of all calibration images, row by row: the interface, and rows in memory.

Rows lie one after the other with the channels last inside a row (``[n, H, W, C]``), wherever they are:
taking a row is one contiguous copy, and what is handed out is a permuted view of the taken rows.
"""

from __future__ import annotations

import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import torch
from torch import Tensor

from genie_cli.quantization.activations.staging import Staging

Place = Literal["device", "host", "disk"]

_CHUNK_BYTES = 16 << 20
"""Bytes, rounded down to whole rows and at least one, that are on the way to or from a file or a GPU at once."""


class ActivationStore(ABC):
    """n rows (one per calibration image) of one tensor of the network, on the device, in host memory or in a file.

    A read is always a copy: it stays as it is when the store is written to or released.

    Attributes:
        shape: logical shape, ``[n, C, ...]`` or ``[n, F]``.
        dtype: of the rows.
        place: where the rows are.
        num_bytes: what the store takes there.
    """

    place: Place

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, staging: Staging) -> None:
        """Take the memory or the file; the rows are undefined until written. Stores are made by an `ActivationPool`.

        Args:
            shape: logical shape.
            dtype: of the rows.
            staging: brings rows to the device that they are read to.
        """
        self.shape = shape
        self.dtype = dtype
        self.num_bytes = math.prod(shape) * dtype.itemsize
        self.on_release: Callable[[ActivationStore], None] | None = None
        """Called once with the store, when it is released."""
        self._staging = staging
        self._released = False
        self._row_numel = math.prod(shape[1:])
        self._rows_per_chunk = max(1, _CHUNK_BYTES * shape[0] // self.num_bytes)

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

    def gather_on_device(self, rows: Tensor) -> Tensor:
        """Rows of a store on a GPU by indices there, ``[k]`` int64; unchecked, as a look at them would make it wait."""
        return self._take(rows)

    def release(self) -> None:
        """Give the memory or the file back to the pool; again does nothing. No reads after that."""
        if not self._released:
            self._released = True
            self._free()
            if self.on_release is not None:
                self.on_release(self)

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
        device = self._staging.device
        out = torch.empty((len(selection), self._row_numel), dtype=self.dtype, device=device)
        if self.place == "device" or device.type == "cpu":
            self._fill(out, selection)
        else:
            self._staging.upload(out, self._rows_per_chunk, lambda buffer, part: self._fill(buffer, selection[part]))
        if len(self.shape) < 3:
            return out.view(len(selection), *self.shape[1:])
        return out.view(len(selection), *self.shape[2:], self.shape[1]).movedim(-1, 1)

    def _check_open(self) -> None:
        if self._released:
            raise RuntimeError(f"this activation store of shape {self.shape} has been released")

    def _check_range(self, first: int, last: int) -> None:
        if not 0 <= first <= last <= len(self):
            raise IndexError(f"rows {first} to {last} are outside the store's {len(self)} rows")


class MemoryStore(ActivationStore):
    """Rows in the device's or the host's memory."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, staging: Staging, place: Place) -> None:
        """Take the memory of `place`."""
        super().__init__(shape, dtype, staging)
        self.place = place
        if place == "device":
            self._rows = torch.empty((len(self), self._row_numel), dtype=dtype, device=staging.device)
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


def _anonymous_memory(num_bytes: int) -> mmap.mmap:
    """Memory outside the heap, returned to the system once nothing refers to it; in huge pages where there are any."""
    memory = mmap.mmap(-1, num_bytes)
    with suppress(AttributeError, OSError):  # other systems
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
