"""Learned activation step sizes (LSQ) with randomly dropped quantization (QDrop)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from genie_cli.quantization.chunks import chunks
from genie_cli.quantization.rounding import STEP_FLOOR
from genie_cli.quantization.straight_through import inside
from genie_cli.runtime.determinism import RandomMasks
from genie_cli.student.grid import code_range, fake_quantize
from genie_cli.student.modules import ActivationQuantizer

_DROPPED = 1e-20
"""What a value that passes as it is is multiplied by: it rounds to 0 without an error, and keeps its sign."""
Draw = Callable[[Tensor], Tensor]
"""Makes a mask in the shape of a tensor: 1 where an element is quantized, `_DROPPED` where it passes as it is."""


class _FakeQuantize(torch.autograd.Function):
    """Fake quantization with straight-through gradients.

    With t = x / s, q = clip(round(t)): dx' / dx = 1 inside the grid, else 0; dx' / ds = q - t inside,
    else q (Esser et al. 2020, Eq. 3, without the gradient scale). Elements that pass as they are have
    gradients 1 and 0: they are worked on as t near 0, which is inside the grid and has no error.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step_size: Tensor, quant_min: int, quant_max: int, draw: Draw | None
    ) -> Tensor:
        result = torch.empty_like(x)
        kept = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        slope = torch.empty_like(x, dtype=torch.float32)
        bounds = (quant_min - 0.5, quant_max + 0.5)
        inverse = step_size.reciprocal()
        for own in chunks(x):
            exact = x[own].float()
            scaled = exact * inverse
            if draw is not None:
                scaled.mul_(draw(exact))
            if kept is not None:
                kept[own] = scaled
            codes = scaled.round().clamp_(quant_min, quant_max)
            torch.sub(codes, inside(scaled, scaled, *bounds), out=slope[own])
            result[own] = torch.addcmul(exact, codes.sub_(scaled), step_size)
        ctx.save_for_backward(kept, slope)
        ctx.bounds = bounds
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        kept, slope = ctx.saved_tensors
        grad = grads[0]
        parts = [(grad[own].float() * slope[own]).sum() for own in chunks(grad)]
        grad_x = inside(grad, kept, *ctx.bounds) if kept is not None else None
        return grad_x, torch.stack(parts).sum().view(1), None, None, None


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
        self.masks: RandomMasks | None = None
        """1 where an element is quantized; None: nothing is dropped."""

    def drop_with(self, generator: torch.Generator) -> None:
        """Drop quantization from now on, at places that `generator` draws."""
        self.masks = RandomMasks(1 - self.drop_prob, generator, otherwise=_DROPPED)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`, any shape."""
        if not self.training:
            return fake_quantize(x, self.step_size.detach().to(x.dtype), self.bits, self.signed)
        draw = self.masks.draw if self.drop_prob > 0 and self.masks is not None else None
        quant_min, quant_max = code_range(self.bits, self.signed)
        result: Tensor = _FakeQuantize.apply(x, self.step_size, quant_min, quant_max, draw)
        return result

    @torch.no_grad()
    def keep_step_positive(self) -> None:
        """Project the step size back above its floor."""
        self.step_size.clamp_(min=self.floor)

    @torch.no_grad()
    def harden(self) -> ActivationQuantizer:
        """The finished quantizer."""
        return ActivationQuantizer(float(self.step_size), self.bits, self.signed)
