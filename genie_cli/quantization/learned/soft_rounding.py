"""GENIE-M's weight: a frozen base, softbits and a step size that learn together (section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from genie_cli.quantization.learned.straight_through import inside
from genie_cli.quantization.learned.weight import LearnedWeight, WeightParts
from genie_cli.student.formats import NumberFormat
from genie_cli.student.grid import like_rows

GAMMA, ZETA = -0.1, 1.1
"""Stretch of the rectified sigmoid (AdaRound, Eq. 23), so that a softbit can reach 0 and 1."""
STEP_SIZE_FLOOR = 0.01
"""A step size never falls below this share of its start."""
_TINY = 1e-12
MAX_GRID_SHIFT = 0.05
"""An optimizer step moves the outermost grid point by at most this share of a step size."""


def largest_rate(step_size: Tensor, format: NumberFormat) -> Tensor:
    """The largest absolute rate for a step size of any shape, in its own units.

    It moves the grid's end by `MAX_GRID_SHIFT`. Adam moves a step size by its rate whatever the gradient's size.
    The authors' rates suit 2 to 4 bits; on an 8-bit grid, or a tensor of small values, one step of them would
    throw the outer codes several levels off.
    """
    return step_size * (MAX_GRID_SHIFT / (format.quant_max - format.quant_min))


class SoftRoundedWeight(LearnedWeight):
    """``W_q = s * (clip(B + V + z, quant_min, quant_max) - z)`` (Eq. 10), with B frozen at its start (Eq. 11).

    ``B = floor(W / s_0)`` never follows s. The softbit ``V = clip(sigmoid(logit) * 1.2 - 0.1, 0, 1)``
    starts at the fractional part of ``W / s_0``, so that ``W_q`` starts at W where W is on the grid.
    """

    has_softbits = True
    base: Tensor

    def __init__(
        self, weight: Tensor, scale: Tensor, zero_point: Tensor, format: NumberFormat, offset_scale: Tensor
    ) -> None:
        """Start from `weight` on the grid of `scale` and `zero_point`; see `LearnedWeight`."""
        scaled = weight.detach().float() / like_rows(scale, weight)
        base = scaled.floor()
        fraction = ((scaled - base).clamp(1e-4, 1 - 1e-4) - GAMMA) / (ZETA - GAMMA)
        super().__init__(torch.logit(fraction), scale, zero_point, format, offset_scale)
        self.register_buffer("base", base + self.zero_point)

    def parts(self, softbits: Tensor, step_size: Tensor) -> WeightParts:
        """The soft-rounded weight of V and s: dW/dV is s inside the grid, dW/ds is B + V on the grid."""
        quant_min, quant_max = self.format.quant_min, self.format.quant_max
        codes = self.base + softbits
        slope = inside(step_size.expand_as(codes), codes, quant_min, quant_max)
        centred = codes.clamp_(quant_min, quant_max).sub_(self.zero_point)
        return WeightParts(centred * step_size, slope, centred)

    def codes(self, step_size: Tensor) -> Tensor:
        """Softbits rounded by the sign of their logits; they do not follow the step size."""
        return self.base + (self.elements >= 0)


def rectified_sigmoid(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Softbits ``clip(sigmoid(x) * (zeta - gamma) + gamma, 0, 1)`` of logits, any shape; and the slope.

    AdaRound (Nagel et al., ICML 2020), Eq. 23.
    """
    sigmoid = torch.sigmoid(logits)
    stretched = sigmoid * (ZETA - GAMMA) + GAMMA
    slope = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1).mul_(ZETA - GAMMA)
    slope = inside(slope, stretched, 0, 1)
    return stretched.clamp_(0, 1), slope


def rounding_penalty(softbits: Tensor, beta: Tensor | float) -> tuple[Tensor, Tensor]:
    """``sum(1 - |2V - 1|^beta)``, which is zero where every softbit is 0 or 1, and its slope (AdaRound, Eq. 24).

    The power is made of exp and log, which processors have as vectors.
    """
    signed = 2 * softbits - 1
    distance = signed.abs().clamp_(min=_TINY)
    power = distance.log().mul_(beta).exp_()
    penalty = softbits.numel() - power.sum()
    return penalty, power.div_(distance).mul_(signed.sign_()).mul_(beta).mul_(-2)


def rounding_beta(step: int, num_steps: int, warmup: float, start: float, end: float) -> float | None:
    """The regularizer's exponent: linear from `start` to `end` after the warm-up, None during it."""
    first = warmup * num_steps
    if step < first:
        return None
    return end + (start - end) * max(0.0, 1 - (step - first) / (num_steps - first))
