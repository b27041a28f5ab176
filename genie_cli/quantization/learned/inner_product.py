"""The sum of an elementwise product, in one pass over the memory where the layouts allow it."""

from __future__ import annotations

import torch
from torch import Tensor

_MOST = 2**31 - 1
"""Elements that the libraries of linear algebra count."""


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """``sum(a * b)``, a float32 scalar, of two float32 tensors of one shape."""
    if a.stride() == b.stride() and _is_dense(a) and a.numel() <= _MOST:
        flat = _flat(a)
        return torch.dot(flat, flat if a is b else _flat(b))
    return (a * b).sum()


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _flat(x: Tensor) -> Tensor:
    """The elements in the order of the memory."""
    return x.as_strided((x.numel(),), (1,))
