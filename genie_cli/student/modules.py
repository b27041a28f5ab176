"""The quantizers of a finished student, as modules: integer weights and activation step sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genie_cli.student.formats import NumberFormat
from genie_cli.student.grid import dequantize_weight, fake_quantize, quantize_weight


class IntegerWeight(nn.Module):
    """A weight stored as integer codes, dequantized whenever it is read.

    Attributes:
        format: of the codes; one that fits into uint8, or into int8 where the codes are signed.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, zero_point: Tensor, format: NumberFormat) -> None:
        """Keep codes ``[O, ...]`` as 8-bit integers with scale and zero point ``[O, 1]``."""
        super().__init__()
        assert format.bits <= 8, f"codes of {format} do not fit into 8 bits"
        self.format = format
        self.register_buffer("codes", codes.to(torch.int8 if format.signed else torch.uint8))
        self.register_buffer("scale", scale.float())
        self.register_buffer("zero_point", zero_point.to(torch.int32))

    @classmethod
    def nearest(cls, weight: Tensor, scale: Tensor, zero_point: Tensor, format: NumberFormat) -> IntegerWeight:
        """The weight ``[O, ...]`` rounded to its nearest codes on the grid of `scale` and `zero_point`, ``[O, 1]``."""
        return cls(quantize_weight(weight, scale, zero_point, format), scale, zero_point, format)

    def forward(self) -> Tensor:
        """The weight, float32 ``[O, ...]``."""
        return dequantize_weight(self.codes.float(), self.scale, self.zero_point.float())

    def extra_repr(self) -> str:
        """Shape and format."""
        return f"{tuple(self.codes.shape)}, {self.format}"


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to its grid: ``step_size * clip(round(x / step_size))``.

    Attributes:
        format: of the codes.
    """

    step_size: Tensor

    def __init__(self, step_size: float, format: NumberFormat) -> None:
        """Set the grid of `format` and `step_size`."""
        super().__init__()
        self.format = format
        self.register_buffer("step_size", torch.tensor([step_size]))

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`, any shape."""
        return fake_quantize(x, self.step_size, self.format)

    def extra_repr(self) -> str:
        """The format."""
        return str(self.format)


class FloatWeight(nn.Module):
    """A weight that stays as it is, where a check needs a student whose quantizers do nothing."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        """Hand out `weight` ``[O, ...]``."""
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self) -> Tensor:
        """The weight."""
        return self.weight
