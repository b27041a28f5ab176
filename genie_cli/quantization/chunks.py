"""Elementwise work a cache's worth at a time: what lies between the operations never reaches the memory."""

from __future__ import annotations

from torch import Tensor

_CHUNK = 1 << 18
"""Elements worked on at once on a CPU."""


def chunks(x: Tensor) -> list[slice]:
    """Rows of `x` to work on together: all on a GPU, a cache's worth on a CPU."""
    rows = len(x) if x.device.type != "cpu" else max(1, _CHUNK * len(x) // max(1, x.numel()))
    return [slice(first, first + rows) for first in range(0, len(x), rows)]
