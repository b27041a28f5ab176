"""A weight that learns behind nearest rounding, with straight-through gradients (AdaQuant, LSQ)."""

from __future__ import annotations

import torch
from torch import Tensor

from genie_cli.quantization.learned_weight import LearnedWeight, WeightParts
from genie_cli.quantization.straight_through import inside
from genie_cli.student.formats import NumberFormat
from genie_cli.student.grid import like_rows


class StraightThroughWeight(LearnedWeight):
    """``W_q = s * (clip(round(W' / s) + z, quant_min, quant_max) - z)`` with ``W' = W + s_0 * shift``.

    The codes follow both the weight and the step size, unlike GENIE-M's: AdaQuant (Hubara et al., ICML 2021,
    Eq. 3) learns the shift layer by layer, LSQ (Esser et al., ICLR 2020) all weights at once. The shift
    is counted in steps, so that one rate means the same for every layer.
    """

    has_softbits = False
    scaled: Tensor

    def __init__(
        self, weight: Tensor, scale: Tensor, zero_point: Tensor, format: NumberFormat, offset_scale: Tensor
    ) -> None:
        """Start from `weight` on the grid of `scale` and `zero_point`; see `LearnedWeight`."""
        scaled = weight.detach().float() / like_rows(scale, weight)
        super().__init__(torch.zeros_like(scaled), scale, zero_point, format, offset_scale)
        self.register_buffer("scaled", scaled)

    def parts(self, shift: Tensor, step_size: Tensor) -> WeightParts:
        """The quantized weight with LSQ's gradients (Esser et al. 2020, Eq. 3, 5).

        dW/dshift is s_0 inside the grid; dW/ds is q - w/s there, and beyond it the grid's end.
        """
        quant_min, quant_max = self.format.quant_min, self.format.quant_max
        exact = (self.scaled + shift) * (self.start / step_size)
        codes = exact.round().add_(self.zero_point)
        slope = inside(self.start.expand_as(codes).contiguous(), codes, quant_min - 0.5, quant_max + 0.5)
        kept = inside(exact, codes, quant_min - 0.5, quant_max + 0.5)
        centred = codes.clamp_(quant_min, quant_max).sub_(self.zero_point)
        return WeightParts(centred * step_size, slope, centred - kept)

    def codes(self, step_size: Tensor) -> Tensor:
        """The nearest grid points of the shifted weight."""
        return ((self.scaled + self.elements) * (self.start / step_size)).round_().add_(self.zero_point)
