"""Learned activation step sizes (LSQ) with randomly dropped quantization (QDrop)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genie_cli.quantization.rounding import STEP_FLOOR
from genie_cli.runtime.determinism import random_mask
from genie_cli.student.grid import code_range
from genie_cli.student.modules import ActivationQuantizer


class _FakeQuantize(torch.autograd.Function):
    """Fake quantization with straight-through gradients.

    With t = x / s, q = clip(round(t)): dx' / dx = 1 inside the grid, else 0; dx' / ds = q - t inside,
    else q (Esser et al. 2020, Eq. 3, without the gradient scale). `quantized` is 1 where an element is
    quantized and 0 where it passes as it is.
    """

    # Masks are floats and selections are arithmetic: on a CPU a boolean `where` over a channels-last
    # tensor costs as much as a hundred multiplications.

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step_size: Tensor, quant_min: int, quant_max: int, quantized: Tensor | None
    ) -> Tensor:
        exact = x.float()
        scaled = exact / step_size
        error = scaled.round().clamp_(quant_min, quant_max).sub_(scaled)
        excess = scaled.clamp(quant_min - 0.5, quant_max + 0.5).sub_(scaled)
        if quantized is not None:
            error.mul_(quantized)
            excess.mul_(quantized)
        result = torch.addcmul(exact, error, step_size)
        outside = torch.ne(excess, 0, out=torch.empty_like(excess))
        ctx.save_for_backward(outside, error.addcmul_(outside, scaled))
        return result.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        outside, slope = ctx.saved_tensors
        grad = grads[0].float()
        grad_x = torch.addcmul(grad, grad, outside, value=-1).to(grads[0].dtype) if ctx.needs_input_grad[0] else None
        return grad_x, (grad * slope).sum().view(1), None, None, None


class LearnedActivationQuantizer(nn.Module):
    """An activation quantizer whose step size learns, and which drops quantization at random.

    Each element keeps full precision with chance `drop_prob` (QDrop, Wei et al. 2022) while
    training; in evaluation mode nothing is dropped.
    """

    def __init__(self, step_size: float, bits: int, signed: bool, drop_prob: float) -> None:
        """Start at `step_size` on the grid of `bits` bits, unsigned or signed."""
        super().__init__()
        self.bits = bits
        self.signed = signed
        self.drop_prob = drop_prob
        self.floor = STEP_FLOOR * step_size
        self.step_size = nn.Parameter(torch.tensor([step_size]))
        self.generator: torch.Generator | None = None
        """Source of the dropped elements; None: nothing is dropped."""

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`, any shape."""
        quantized = None
        if self.training and self.drop_prob > 0 and self.generator is not None:
            quantized = random_mask(x, 1 - self.drop_prob, self.generator)
        quant_min, quant_max = code_range(self.bits, self.signed)
        result: Tensor = _FakeQuantize.apply(x, self.step_size, quant_min, quant_max, quantized)
        return result

    @torch.no_grad()
    def keep_step_positive(self) -> None:
        """Project the step size back above its floor."""
        self.step_size.clamp_(min=self.floor)

    @torch.no_grad()
    def harden(self) -> ActivationQuantizer:
        """The finished quantizer."""
        return ActivationQuantizer(float(self.step_size), self.bits, self.signed)
