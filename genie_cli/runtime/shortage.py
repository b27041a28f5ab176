"""Running out of memory: told apart from other errors, and met with smaller pieces where they change nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is a device's or the host's lack of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)


def in_pieces(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """``function(batch)``, in halves of halves where memory does not suffice for the whole.

    For functions that work image by image: ``[B, ...]`` to ``[B, ...]``.
    """
    try:
        return function(batch)
    except (RuntimeError, MemoryError) as error:
        if len(batch) < 2 or not is_out_of_memory(error):
            raise
    # outside of the handler, whose traceback would hold the failed attempt's tensors
    if batch.device.type == "cuda":
        torch.cuda.empty_cache()
    half = (len(batch) + 1) // 2
    return torch.cat([in_pieces(function, piece) for piece in batch.split(half)])
