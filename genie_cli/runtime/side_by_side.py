"""Independent tasks, advanced in turns: on CUDA each on a stream of its own, so that they overlap."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import nullcontext

import torch

_END = object()


def side_by_side(tasks: Sequence[Generator[None, None, None]], device: torch.device) -> None:
    """Run all tasks to their ends, each up to its next ``yield`` in turn.

    The kernels that a step enqueues on a GPU run beside those of the other tasks. A task that reads a value back
    waits for its own stream alone.

    Args:
        tasks: tasks that do not depend on one another.
        device: where they compute.
    """
    streams: list[torch.cuda.Stream | None] = [None] * len(tasks)
    if device.type == "cuda" and len(tasks) > 1:
        streams = [torch.cuda.Stream(device) for _ in tasks]
        for stream in streams:
            assert stream is not None
            stream.wait_stream(torch.cuda.current_stream(device))  # the tensors that they share were made there
    try:
        under_way = list(zip(tasks, streams, strict=True))
        while under_way:
            under_way = [(task, stream) for task, stream in under_way if _goes_on(task, stream)]
    finally:
        for task in tasks:
            task.close()
        for stream in streams:
            if stream is not None:
                torch.cuda.current_stream(device).wait_stream(stream)


def _goes_on(task: Generator[None, None, None], stream: torch.cuda.Stream | None) -> bool:
    """Advance a task; returns True if it has more steps."""
    with nullcontext() if stream is None else torch.cuda.stream(stream):
        return next(task, _END) is not _END
