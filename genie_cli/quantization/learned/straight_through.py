"""The rule of all straight-through gradients: a gradient passes where a value lies inside its bounds."""

from __future__ import annotations

import torch
from torch import Tensor


def inside(grad: Tensor, value: Tensor, low: float, high: float, out: Tensor | None = None) -> Tensor:
    """`grad` where ``low < value < high``, else 0; all of one shape and dtype, written to `out` where given.

    Comparisons and boolean `where` cost a CPU several times what arithmetic does; the backward kernel of
    hardtanh does both in one vectorised pass.
    """
    result: Tensor
    if out is None:
        result = torch.ops.aten.hardtanh_backward(grad, value, low, high)
    else:
        result = torch.ops.aten.hardtanh_backward.grad_input(grad, value, low, high, grad_input=out)
    return result
