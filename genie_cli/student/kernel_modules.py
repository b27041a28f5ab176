"""The parts of integer kernels as modules: codes in, codes out.

Codes are integers in float32, any shape. `student.integer_kernels` puts the parts into a network, and says which
formulas they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from genie_cli.student.modules import ActivationQuantizer, InFloat32, IntegerWeight
from genie_cli.student.quantized_layers import QuantizedLayer


class Quantize(InFloat32):
    """From values to the codes of a quantizer, in float32."""

    step_size: Tensor

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        """Take the grid of `quantizer`."""
        super().__init__()
        self._format = quantizer.format
        self.register_buffer("step_size", quantizer.step_size.clone())

    def forward(self, x: Tensor) -> Tensor:
        """The codes of `x`, any shape."""
        return (x.float() / self.step_size).round_().clamp_(self._format.quant_min, self._format.quant_max)


class Dequantize(InFloat32):
    """From codes to values."""

    step_size: Tensor

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        """Take the grid of `quantizer`."""
        super().__init__()
        self.register_buffer("step_size", quantizer.step_size.clone())

    def forward(self, codes: Tensor) -> Tensor:
        """The values of `codes`, any shape."""
        return (codes * self.step_size).to(self.dtype)


class BiasCodes(InFloat32):
    """The codes of a bias, in float32."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        """Keep `value` ``[O]``."""
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> Tensor:
        """The codes ``[O]``."""
        return self.value


class WeightCodes(IntegerWeight):
    """The codes of a weight less its zero points, times ``2^k``, in float32 whatever the network is cast to."""

    @classmethod
    def of(cls, layer: QuantizedLayer) -> WeightCodes:
        """Take the codes of a layer."""
        weight = layer.weight
        unit = torch.full_like(weight.scale, float(1 << layer.spare_bits))
        return cls(weight.codes, unit, weight.zero_point, weight.format)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.dtype = torch.float32
        return self


class Requantize(InFloat32):
    """From integer sums to codes, or to values where no quantizer follows."""

    multiplier: Tensor
    bias: Tensor | None

    def __init__(self, multiplier: Tensor, bias: Tensor | None, bounds: tuple[int, int] | None) -> None:
        """Say how codes follow from sums; the tensors broadcast over the sums.

        Args:
            multiplier: from a sum with its bias to a code.
            bias: int32; None: the sums have it.
            bounds: the smallest and the largest code; None: values are wanted, which are not rounded.
        """
        super().__init__()
        self._bounds = bounds
        self.register_buffer("multiplier", multiplier)
        self.register_buffer("bias", bias)

    def forward(self, sums: Tensor) -> Tensor:
        """The codes or values of `sums`, float32, any shape."""
        if self.bias is not None:
            sums = sums.to(torch.int32).add_(self.bias).to(torch.float32)
        scaled = sums * self.multiplier
        return scaled.to(self.dtype) if self._bounds is None else scaled.round_().clamp_(*self._bounds)


class RequantizeMean(InFloat32):
    """From the mean of codes over positions to codes."""

    multiplier: Tensor

    def __init__(self, number: int, multiplier: Tensor, bounds: tuple[int, int]) -> None:
        """Say how codes follow.

        Args:
            number: of positions.
            multiplier: from the sum over them to a code, ``[1]``.
            bounds: the smallest and the largest code.
        """
        super().__init__()
        self._number, self._bounds = number, bounds
        self.register_buffer("multiplier", multiplier)

    def forward(self, means: Tensor) -> Tensor:
        """The codes of `means`, any shape."""
        return (means * self._number).round_().mul_(self.multiplier).round_().clamp_(*self._bounds)


class Addition(InFloat32):
    """From the codes of two tensors to those of their sum.

    A fused multiply-add is exact in float64, and rounded to float32.
    """

    ratios: Tensor
    offset: Tensor

    def __init__(
        self, a: ActivationQuantizer, b: ActivationQuantizer, output: ActivationQuantizer, bounds: tuple[int, int]
    ) -> None:
        """Take the grids of both tensors and of the sum.

        Args:
            a: of the first one.
            b: of the second one.
            output: of the sum.
            bounds: the smallest and the largest code of the sum.
        """
        super().__init__()
        ratio_a, ratio_b = (quantizer.step_size / output.step_size for quantizer in (a, b))
        self._low_a, self._low_b, self._low = (quantizer.format.quant_min for quantizer in (a, b, output))
        self._bounds = bounds
        self.register_buffer("ratios", torch.stack([ratio_a, ratio_b]))
        self.register_buffer("offset", -self._low + (ratio_a * self._low_a + ratio_b * self._low_b))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The codes of the sum of `a` and `b`, codes of shapes that broadcast."""
        ratio_a, ratio_b = self.ratios.double()
        inner = (b * ratio_b).add_(self.offset.double() - ratio_b * self._low_b).float()
        outer: Tensor = (a * ratio_a).sub_(ratio_a * self._low_a).add_(inner).float()
        return outer.round_().add_(self._low).clamp_(*self._bounds)
