"""The way of stored activations to a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Staging:
    """Two page-locked buffers through which rows go to a GPU: one is filled while the other is copied."""

    def __init__(self, device: torch.device) -> None:
        """Buffers for `device`, made when they are first needed."""
        self.device = device
        self._buffers = [torch.empty(0, dtype=torch.uint8)] * 2
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def upload(self, out: Tensor, rows_per_chunk: int, fill: Callable[[Tensor, slice], None]) -> None:
        """Copy rows to `out` ``[k, row_numel]`` on the device, asynchronously.

        Args:
            out: the device's memory.
            rows_per_chunk: rows that go together.
            fill: called with a buffer and the rows of `out` that it is to be filled for.
        """
        for first in range(0, len(out), rows_per_chunk):
            part = slice(first, min(first + rows_per_chunk, len(out)))
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
            event.record(torch.cuda.current_stream(self.device))
            self._copied[self._turn] = event


def _page_locked(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
