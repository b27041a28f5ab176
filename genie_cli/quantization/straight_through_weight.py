"""A weight that learns behind nearest rounding, with straight-through gradients (AdaQuant, LSQ)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genie_cli.quantization.rounding import WeightParts
from genie_cli.quantization.straight_through import inside
from genie_cli.student.grid import like_rows
from genie_cli.student.modules import IntegerWeight


class StraightThroughWeight(nn.Module):
    """``W_q = s * (clip(round(W' / s) + z, 0, 2^b - 1) - z)`` with ``W' = W + s_0 * shift``.

    The codes follow both the weight and the step size, unlike GENIE-M's: AdaQuant (Hubara et al., ICML 2021,
    Eq. 3) learns the shift layer by layer, LSQ (Esser et al., ICLR 2020) all weights at once. The shift
    is counted in steps, so that one rate means the same for every layer.

    Shapes: weight ``[O, ...]``; step size, zero point and unit ``[O, 1, ...]``.
    """

    has_softbits = False
    scaled: Tensor
    zero_point: Tensor
    start: Tensor
    unit: Tensor
    elements: Tensor
    offset: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, zero_point: Tensor, bits: int, unit: Tensor) -> None:
        """Start from the grid of `scale` and `zero_point`, ``[O, 1]``; `unit` is the step per unit of offset."""
        super().__init__()
        self.bits = bits
        self.register_buffer("scaled", weight.detach().float() / like_rows(scale, weight))
        self.register_buffer("zero_point", like_rows(zero_point, weight).clone())
        self.register_buffer("start", like_rows(scale, weight).clone())
        self.register_buffer("unit", like_rows(unit, weight).clone())
        self.register_buffer("elements", torch.zeros_like(self.scaled))
        self.register_buffer("offset", torch.zeros_like(self.start))

    def parts(self, shift: Tensor, step_size: Tensor) -> WeightParts:
        """The quantized weight with LSQ's gradients (Esser et al. 2020, Eq. 3, 5).

        dW/dshift is s_0 inside the grid; dW/ds is q - w/s there, and beyond it the grid's end.
        """
        top = 2**self.bits - 1
        exact = (self.scaled + shift) * (self.start / step_size)
        codes = exact.round().add_(self.zero_point)
        slope = inside(self.start.expand_as(codes).contiguous(), codes, -0.5, top + 0.5)
        kept = inside(exact, codes, -0.5, top + 0.5)
        centred = codes.clamp_(0, top).sub_(self.zero_point)
        return WeightParts(centred * step_size, slope, centred - kept)

    @torch.no_grad()
    def harden(self) -> IntegerWeight:
        """The integer weight."""
        step_size = self.start + self.unit * self.offset
        codes = ((self.scaled + self.elements) * (self.start / step_size)).round_().add_(self.zero_point)
        codes.clamp_(0, 2**self.bits - 1)
        return IntegerWeight(codes, step_size.flatten(1), self.zero_point.flatten(1), self.bits)
