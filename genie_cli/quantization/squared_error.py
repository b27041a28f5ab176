"""The reconstruction loss: the squared error at a unit's output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genie_cli.quantization.chunks import chunks


class _SquaredError(torch.autograd.Function):
    """Its gradient is made in the forward pass, while the difference is in the cache."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, target: Tensor) -> Tensor:
        places = target.numel() // target.shape[1]
        gradient = torch.empty_like(output) if ctx.needs_input_grad[0] else None
        norms = []
        for own in chunks(output):
            difference = output[own].float() - target[own]
            norms.append(torch.linalg.vector_norm(difference))
            if gradient is not None:
                gradient[own] = difference.mul_(2 / places)
        ctx.save_for_backward(gradient)
        return torch.stack(norms).square_().sum() / places

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Squared difference in float32, summed over channels and averaged over the rest.

    Args:
        output: ``[B, C, ...]``, float32 or bfloat16.
        target: the same shape, float32.
    """
    loss: Tensor = _SquaredError.apply(output, target)
    return loss
