"""A weight whose codes are finished and whose step sizes still learn."""

from __future__ import annotations

import torch
from torch import Tensor

from genie_cli.quantization.learned.soft_rounding import largest_rate
from genie_cli.quantization.learned.weight import LearnedWeight, WeightParts
from genie_cli.student.modules import IntegerWeight


class ScaledWeight(LearnedWeight):
    """``W_q = s * (code - z)``; an offset of 1 moves a step size by the largest rate that is safe."""

    has_softbits = False

    def __init__(self, weight: IntegerWeight) -> None:
        """Start from the step sizes of `weight`."""
        rate = largest_rate(weight.scale, weight.format)
        super().__init__(weight.codes.float(), weight.scale, weight.zero_point.float(), weight.format, rate)

    def parts(self, codes: Tensor, step_size: Tensor) -> WeightParts:
        """The weight of the codes and s: nothing learns element by element, dW/ds is the code on the grid."""
        centred = codes - self.zero_point
        return WeightParts(centred * step_size, torch.zeros_like(centred), centred)

    def codes(self, step_size: Tensor) -> Tensor:
        """The codes, which do not follow the step size."""
        return self.elements
