"""The quantizers of a finished student, as modules: integer weights and activation step sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genie_cli.student.grid import dequantize_weight, fake_quantize


class IntegerWeight(nn.Module):
    """A weight stored as integer codes, dequantized whenever it is read."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> None:
        """Keep codes ``[O, ...]`` (uint8) with scale and zero point ``[O, 1]``."""
        super().__init__()
        self.bits = bits
        self.register_buffer("codes", codes.to(torch.uint8))
        self.register_buffer("scale", scale.float())
        self.register_buffer("zero_point", zero_point.to(torch.int32))

    def forward(self) -> Tensor:
        """The weight, float32 ``[O, ...]``."""
        return dequantize_weight(self.codes.float(), self.scale, self.zero_point.float())

    def extra_repr(self) -> str:
        """Shape and bits."""
        return f"{tuple(self.codes.shape)}, bits={self.bits}"


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to its grid: ``step_size * clip(round(x / step_size))``."""

    step_size: Tensor

    def __init__(self, step_size: float, bits: int, signed: bool) -> None:
        """Set the grid of `bits` bits, unsigned or signed."""
        super().__init__()
        self.bits = bits
        self.signed = signed
        self.register_buffer("step_size", torch.tensor([step_size]))

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`, any shape."""
        return fake_quantize(x, self.step_size, self.bits, self.signed)

    def extra_repr(self) -> str:
        """Bits and sign."""
        return f"bits={self.bits}, signed={self.signed}"
