"""Memory runs out in synthesis: the error that names a batch size that fits.

Batch-norm statistics are those of the whole batch, so that a batch cannot be worked through in pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch

from genie_cli.errors import DeviceError
from genie_cli.runtime.memory import format_size, free_memory
from genie_cli.runtime.shortage import fits

_T = TypeVar("_T")


def or_the_size_that_fits(
    work: Callable[[], _T], try_size: Callable[[int], None], batch_size: int, device: torch.device
) -> _T:
    """Call `work`; where memory runs out, find the batch size that fits.

    Args:
        work: works on a batch of `batch_size` images.
        try_size: takes the memory of a batch whose size is limited so, and drops it; called where `work` runs out.
        batch_size: the limit under which `work` takes place.
        device: whose memory it is.

    Raises:
        DeviceError: memory does not suffice; the largest half, quarter, ... of the batch that fits.
    """
    results: list[_T] = []
    if fits(lambda: results.append(work())):
        return results[0]
    room = f"{format_size(free_memory(device))} are free"
    smaller = batch_size // 2
    while smaller >= 2 and not fits(partial(try_size, smaller)):
        smaller //= 2
    mend = f"--batch-size {smaller} does" if smaller >= 2 else "nor do two; it takes more memory"
    raise DeviceError(
        f"A batch of {batch_size} images does not fit into the memory of {device} ({room}): {mend}. Nothing was "
        "written, and finished batches are kept for the same command with more memory."
    )
