"""Learned activation step sizes (LSQ) with randomly dropped quantization (QDrop)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from genie_cli.quantization.inner_product import inner_product
from genie_cli.quantization.straight_through import inside
from genie_cli.runtime.determinism import Masks
from genie_cli.student.grid import code_range, fake_quantize
from genie_cli.student.modules import ActivationQuantizer

Draw = Callable[[Tensor], Tensor]
"""Makes a mask in the shape of a tensor: 1 where an element is quantized, 0 where it passes as it is."""


class _FakeQuantize(torch.autograd.Function):
    """Fake quantization with straight-through gradients.

    With t = x / s, q = clip(round(t)): dx' / dx = 1 inside the grid, else 0; dx' / ds = q - t inside,
    else q (Esser et al. 2020, Eq. 3, without the gradient scale). So dL/ds is the incoming gradient's
    product with q, less that of what is passed on with t. Elements that pass as they are have
    gradients 1 and 0: they are worked on as t = 0, which is inside the grid and has no error.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step_size: Tensor, quant_min: int, quant_max: int, draw: Draw | None) -> Tensor:
        exact = x.float()
        scaled = exact * step_size.reciprocal()
        if draw is not None:
            scaled.mul_(draw(scaled))
        codes = scaled.round().clamp_(quant_min, quant_max)
        ctx.save_for_backward(scaled, codes)
        ctx.bounds = (quant_min - 0.5, quant_max + 0.5)
        error = codes - scaled
        return torch.addcmul(exact, error, step_size, out=error).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        scaled, codes = ctx.saved_tensors
        grad = grads[0].float()
        if grad.stride() != scaled.stride():  # one reordered copy costs less than three reads across the grain
            grad = torch.empty_like(scaled).copy_(grad)
        grad_step = inner_product(grad, codes)
        low, high = ctx.bounds
        passed = inside(grad, scaled, low, high, out=None if grad is grads[0] else grad)
        grad_step = grad_step - inner_product(passed, scaled)
        grad_x = passed.to(grads[0].dtype) if ctx.needs_input_grad[0] else None
        return grad_x, grad_step.view(1), None, None, None


class LearnedActivationQuantizer(nn.Module):
    """An activation quantizer whose step size learns, and which drops quantization at random.

    Each element keeps full precision with probability `drop_prob` (QDrop, Wei et al. 2022) while
    training; in evaluation mode nothing is dropped.
    """

    step_size: Tensor
    """``[1]``; while a unit learns, set anew for each step."""

    def __init__(self, step_size: float, bits: int, signed: bool, drop_prob: float) -> None:
        """Start at `step_size` on the grid of `bits` bits, unsigned or signed."""
        super().__init__()
        self.bits = bits
        self.signed = signed
        self.drop_prob = drop_prob
        self.register_buffer("step_size", torch.tensor([step_size]))
        self.masks: Masks | None = None
        """1 where an element is quantized; None: nothing is dropped."""

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`, any shape."""
        if not self.training:
            return fake_quantize(x, self.step_size.detach(), self.bits, self.signed)
        draw = self.masks.draw if self.drop_prob > 0 and self.masks is not None else None
        quant_min, quant_max = code_range(self.bits, self.signed)
        result: Tensor = _FakeQuantize.apply(x, self.step_size, quant_min, quant_max, draw)
        return result

    @torch.no_grad()
    def harden(self) -> ActivationQuantizer:
        """The finished quantizer."""
        return ActivationQuantizer(float(self.step_size), self.bits, self.signed)
