"""GENIE-M's weight: a frozen base, softbits and a step size that learn together (section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genie_cli.quantization.straight_through import inside
from genie_cli.student.grid import like_rows
from genie_cli.student.modules import IntegerWeight

GAMMA, ZETA = -0.1, 1.1
"""Stretch of the rectified sigmoid (AdaRound, Eq. 23), so that a softbit can reach 0 and 1."""
STEP_FLOOR = 0.01
"""A step size never falls below this share of its start."""
_TINY = 1e-12
MAX_GRID_SHIFT = 0.05
"""An optimizer step moves the outermost grid point by at most this share of a step size."""


def largest_rate(step_size: Tensor, num_levels: int) -> Tensor:
    """The largest absolute rate for a step size, in its own units: the grid's end moves by `MAX_GRID_SHIFT`.

    Adam moves a step size by its rate whatever the gradient's size. The authors' rates suit 2 to 4 bits; on
    an 8-bit grid, or a tensor of small values, one step of them would throw the outer codes several
    levels off.
    """
    return step_size * (MAX_GRID_SHIFT / num_levels)


class SoftRoundedWeight(nn.Module):
    """``W_q = s * (clip(B + V + z, 0, 2^b - 1) - z)`` (Eq. 10), with B frozen at its start (Eq. 11).

    ``B = floor(W / s_0)`` never follows s. The softbit ``V = clip(sigmoid(logit) * 1.2 - 0.1, 0, 1)``
    starts at the fractional part of ``W / s_0``, so that ``W_q`` starts at W where W is on the grid.
    The step size is ``s = s_0 + unit * offset``: an optimizer's absolute rate on `offset` means the
    same for every channel when `unit` carries the channel's own scale.

    Shapes: weight ``[O, ...]``; step size, zero point and unit ``[O, 1]``.
    """

    base: Tensor
    zero_point: Tensor
    start: Tensor
    unit: Tensor
    lowest: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, zero_point: Tensor, bits: int, unit: Tensor) -> None:
        """Start from the grid of `scale` and `zero_point`; `unit` is the step per unit of offset."""
        super().__init__()
        self.bits = bits
        scaled = weight.detach().float() / like_rows(scale, weight)
        base = scaled.floor()
        self.register_buffer("base", base + like_rows(zero_point, weight))
        self.register_buffer("zero_point", like_rows(zero_point, weight).clone())
        self.register_buffer("start", like_rows(scale, weight).clone())
        self.register_buffer("unit", like_rows(unit, weight).clone())
        fraction = ((scaled - base).clamp(1e-4, 1 - 1e-4) - GAMMA) / (ZETA - GAMMA)
        self.logits = nn.Parameter(torch.logit(fraction))
        self.offset = nn.Parameter(torch.zeros_like(self.start))
        usable = self.unit != 0
        lowest = torch.where(usable, (STEP_FLOOR - 1) * self.start / torch.where(usable, self.unit, 1), 0)
        self.register_buffer("lowest", lowest)

    @property
    def elements(self) -> nn.Parameter:
        """What learns element by element."""
        return self.logits

    def step_size(self) -> Tensor:
        """The learned step size ``[O, 1, ...]``."""
        return self.start + self.unit * self.offset

    def softbits(self) -> Tensor:
        """V in [0, 1], in the shape of the weight."""
        return rectified_sigmoid(self.logits)

    def weight(self, softbits: Tensor) -> Tensor:
        """The soft-rounded weight of V, in the shape of the weight."""
        weight: Tensor = _SoftWeight.apply(
            softbits, self.offset, self.base, self.zero_point, self.start, self.unit, 2**self.bits - 1
        )
        return weight

    @torch.no_grad()
    def keep_step_positive(self) -> None:
        """Project the step size back above its floor; called after each optimizer step."""
        torch.maximum(self.offset, self.lowest, out=self.offset.data)

    @torch.no_grad()
    def harden(self) -> IntegerWeight:
        """The integer weight: softbits rounded by the sign of their logits."""
        codes = (self.base + (self.logits >= 0)).clamp(0, 2**self.bits - 1)
        return IntegerWeight(codes, self.step_size().flatten(1), self.zero_point.flatten(1), self.bits)


class _RectifiedSigmoid(torch.autograd.Function):
    """``clip(sigmoid(x) * (zeta - gamma) + gamma, 0, 1)`` with its slope from the forward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        sigmoid = torch.sigmoid(logits)
        stretched = sigmoid * (ZETA - GAMMA) + GAMMA
        softbits = stretched.clamp(0, 1)
        slope = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1).mul_(ZETA - GAMMA)
        ctx.save_for_backward(inside(slope, stretched, 0, 1))
        return softbits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        slope: Tensor = ctx.saved_tensors[0]
        return grads[0] * slope


def rectified_sigmoid(logits: Tensor) -> Tensor:
    """Softbits of logits, any shape (AdaRound, Eq. 23)."""
    softbits: Tensor = _RectifiedSigmoid.apply(logits)
    return softbits


class _SoftWeight(torch.autograd.Function):
    """``(clip(B + V, 0, top) - z) * (s_0 + unit * offset)`` and its gradients in V and offset."""

    @staticmethod
    def forward(
        ctx: Any,
        softbits: Tensor,
        offset: Tensor,
        base: Tensor,
        zero_point: Tensor,
        start: Tensor,
        unit: Tensor,
        top: int,
    ) -> Tensor:
        codes = base + softbits
        clipped = codes.clamp(0, top)
        step_size = start + unit * offset
        slope = inside(step_size.expand_as(codes), codes, 0, top)
        centred = clipped.sub_(zero_point)
        ctx.save_for_backward(slope, centred, unit)
        return centred * step_size

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slope, centred, unit = ctx.saved_tensors
        grad_step = (grads[0] * centred).flatten(1).sum(1).view(unit.shape)
        return grads[0] * slope, grad_step * unit, None, None, None, None, None


class _RoundingRegularizer(torch.autograd.Function):
    """``sum(1 - |2V - 1|^beta)``; the power as exp and log, which processors have as vectors."""

    @staticmethod
    def forward(ctx: Any, softbits: Tensor, beta: Tensor | float) -> Tensor:
        signed = 2 * softbits - 1
        distance = signed.abs().clamp_(min=_TINY)
        power = distance.log().mul_(beta).exp_()
        penalty = softbits.numel() - power.sum()
        ctx.save_for_backward(power.div_(distance).mul_(signed.sign_()).mul_(beta).mul_(-2))
        return penalty

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope, None


def rounding_regularizer(softbits: Tensor, beta: Tensor | float) -> Tensor:
    """``sum(1 - |2V - 1|^beta)`` (AdaRound, Eq. 24): zero where every softbit is 0 or 1."""
    penalty: Tensor = _RoundingRegularizer.apply(softbits, beta)
    return penalty


def rounding_beta(step: int, num_steps: int, warmup: float, start: float, end: float) -> float | None:
    """The regularizer's exponent: linear from `start` to `end` after the warm-up, None during it."""
    first = warmup * num_steps
    if step < first:
        return None
    return end + (start - end) * max(0.0, 1 - (step - first) / (num_steps - first))
