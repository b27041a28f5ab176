"""Recognise errors of memory that has run out, and go on with smaller batches where they change no result."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from genie_cli.runtime.progress import Note, Reporter

_SAID_OF_SHORTAGE = re.compile(
    r"DefaultCPUAllocator: can't allocate memory|^could not create a primitive$|"  # oneDNN has no room for its code
    r"^Resource temporarily unavailable$|^std::bad_alloc$|"  # no room for a thread's stack
    r"CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|CUSOLVER_STATUS_ALLOC_FAILED|"
    r"CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED|"
    r"[Uu]nable to find an engine to execute this computation"  # cuDNN has no workspace for any of its algorithms
)
"""The words of runtime errors where memory is short, on the host or on a GPU."""
_T = TypeVar("_T")
_Rows = TypeVar("_Rows", Tensor, tuple[Tensor, ...])


def is_out_of_memory(error: BaseException) -> bool:
    """True if memory ran out on the device or the host, or if that is the cause of an error in a CUDA recording."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    cause = error.__context__
    return _SAID_OF_SHORTAGE.search(str(error)) is not None or (cause is not None and is_out_of_memory(cause))


def fits(attempt: Callable[[], None]) -> bool:
    """True if memory suffices for `attempt`; the memory of a failed attempt is free again afterwards."""
    try:
        attempt()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    else:
        return True
    release_failed()
    return False


def release_failed() -> None:
    """Free the memory of a failed attempt; call it outside of the handler, whose traceback holds the tensors."""
    gc.collect()  # graphs of finished parts are reference cycles, and hold their tensors until then
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class BatchSplitter:
    """Calls functions that work image by image, on as many images at once as memory suffices for.

    A size that did not fit is not tried again; the first time, a warning says so.
    """

    def __init__(self, report: Reporter) -> None:
        """`report` receives the warning."""
        self._report = report
        self._most: int | None = None

    def __call__(self, function: Callable[..., _Rows], *batch: Tensor) -> _Rows:
        """``function(*batch)``, joined from parts of the batch where it has to be.

        Args:
            function: tensors ``[B, ...]`` to a tensor ``[B, ...]``, or to a tuple of such tensors.
            batch: its arguments.
        """
        results = self.each(function, *batch)
        if len(results) == 1:
            return results[0]
        if isinstance(results[0], Tensor):
            return torch.cat(results)
        return tuple(torch.cat(parts) for parts in zip(*results, strict=True))

    def each(self, function: Callable[..., _T], *batch: Tensor) -> list[_T]:
        """Results of `function` for each part of the tensors of `batch`, ``[B, ...]``, in their order."""
        results: list[_T] = []
        done, num_rows = 0, len(batch[0])
        while done < num_rows:
            rows = min(self._most or num_rows, num_rows - done)
            part = batch if rows == num_rows else tuple(tensor[done : done + rows] for tensor in batch)

            def attempt(part: tuple[Tensor, ...] = part) -> None:
                results.append(function(*part))

            if rows == 1:
                attempt()  # no smaller part: an error is the caller's
            elif not fits(attempt):
                self._shrink(rows)
                continue
            done += rows
        return results

    def _shrink(self, rows: int) -> None:
        if self._most is None:
            self._report(Note(f"{rows} images at once do not fit into memory: going on with fewer.", warning=True))
        self._most = (rows + 1) // 2
