"""A weight that learns behind nearest rounding, with straight-through gradients (AdaQuant, LSQ)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genie_cli.quantization.rounding import STEP_FLOOR
from genie_cli.quantization.straight_through import inside
from genie_cli.student.grid import like_rows
from genie_cli.student.modules import IntegerWeight

_TINY = 1e-12


class StraightThroughWeight(nn.Module):
    """``W_q = s * (clip(round(W' / s) + z, 0, 2^b - 1) - z)`` with ``W' = W + s_0 * shift``.

    The codes follow both the weight and the step size, unlike GENIE-M's: AdaQuant (Hubara et al., ICML 2021,
    Eq. 3) learns the shift layer by layer, LSQ (Esser et al., ICLR 2020) all weights at once. The shift
    is counted in steps, so that one rate means the same for every layer.

    Shapes: weight ``[O, ...]``; step size, zero point and unit ``[O, 1]``.
    """

    scaled: Tensor
    zero_point: Tensor
    start: Tensor
    unit: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, zero_point: Tensor, bits: int, unit: Tensor) -> None:
        """Start from the grid of `scale` and `zero_point`; `unit` is the step per unit of offset."""
        super().__init__()
        self.bits = bits
        self.register_buffer("scaled", weight.detach().float() / like_rows(scale, weight))
        self.register_buffer("zero_point", like_rows(zero_point, weight).clone())
        self.register_buffer("start", like_rows(scale, weight).clone())
        self.register_buffer("unit", like_rows(unit, weight).clone())
        self.shift = nn.Parameter(torch.zeros_like(self.scaled))
        self.offset = nn.Parameter(torch.zeros_like(self.start))

    @property
    def elements(self) -> nn.Parameter:
        """What learns element by element."""
        return self.shift

    def step_size(self) -> Tensor:
        """The learned step size ``[O, 1, ...]``."""
        return self.start + self.unit * self.offset

    def weight(self, shift: Tensor) -> Tensor:
        """The quantized weight under `shift`, in its shape."""
        weight: Tensor = _StraightThroughWeight.apply(
            shift, self.offset, self.scaled, self.zero_point, self.start, self.unit, 2**self.bits - 1
        )
        return weight

    @torch.no_grad()
    def keep_step_positive(self) -> None:
        """Project the step size back above its floor; called after each optimizer step."""
        usable = self.unit.abs() > _TINY
        lowest = torch.where(usable, (STEP_FLOOR - 1) * self.start / torch.where(usable, self.unit, 1), 0)
        torch.maximum(self.offset, lowest, out=self.offset.data)

    @torch.no_grad()
    def harden(self) -> IntegerWeight:
        """The integer weight."""
        step_size = self.step_size()
        codes = ((self.scaled + self.shift) * (self.start / step_size)).round_().add_(self.zero_point)
        codes.clamp_(0, 2**self.bits - 1)
        return IntegerWeight(codes, step_size.flatten(1), self.zero_point.flatten(1), self.bits)


class _StraightThroughWeight(torch.autograd.Function):
    """Fake quantization of ``(scaled + shift) * s_0`` with LSQ's gradients (Esser et al. 2020, Eq. 3, 5)."""

    @staticmethod
    def forward(
        ctx: Any,
        shift: Tensor,
        offset: Tensor,
        scaled: Tensor,
        zero_point: Tensor,
        start: Tensor,
        unit: Tensor,
        top: int,
    ) -> Tensor:
        step_size = start + unit * offset
        exact = (scaled + shift) * (start / step_size)
        codes = exact.round().add_(zero_point)
        clipped = codes.clamp(0, top)
        slope = inside(start.expand_as(codes).contiguous(), codes, -0.5, top + 0.5)
        centred = clipped - zero_point
        kept = inside(exact, codes, -0.5, top + 0.5)
        ctx.save_for_backward(slope, centred - kept, unit)
        return centred * step_size

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slope, error, unit = ctx.saved_tensors
        grad_step = (grads[0] * error).flatten(1).sum(1).view(unit.shape)
        return grads[0] * slope, grad_step * unit, None, None, None, None, None
