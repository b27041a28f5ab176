"""The quantizers of a finished student, as modules: integer weights and activation step sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from genie_cli.student.formats import NumberFormat
from genie_cli.student.grid import dequantize_weight, fake_quantize, quantize_weight


class InFloat32(nn.Module):
    """A module whose floats stay in float32 where it is cast.

    Attributes:
        dtype: that the module was last cast to, which its values have.
    """

    def __init__(self) -> None:
        """Start in float32."""
        super().__init__()
        self.dtype = torch.float32

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: buffer for name, buffer in self.named_buffers(recurse=False) if buffer.is_floating_point()}
        device = next((buffer.device for buffer in before.values()), None)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self.get_buffer(name)
            if after.dtype != buffer.dtype:
                setattr(self, name, buffer.to(after.device))
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=device)).dtype
        return self


class IntegerWeight(InFloat32):
    """A weight, or slopes, stored as integer codes and dequantized when they are read.

    The values are computed in float32. They have the dtype that the module was last cast to, as by ``half()``; the
    scale stays in float32, so that a cast and its way back lose nothing. Where `keeps_value`, the value of evaluation
    mode is kept for the next call; training mode, a cast or a move, and other codes, drop it. It is never pickled.

    Attributes:
        format: of the codes; one that fits into uint8, or into int8 where the codes are signed.
        dtype: of the values.
        keeps_value: evaluation mode keeps the value; it takes as much memory as the weight in floats.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, zero_point: Tensor, format: NumberFormat) -> None:
        """Keep codes ``[O, ...]`` as 8-bit integers with scale and zero point ``[O, 1]``; ``[1, 1]`` per tensor."""
        super().__init__()
        assert format.bits <= 8, f"codes of {format} do not fit into 8 bits"
        self.format = format
        self.keeps_value = False
        self._kept: Tensor | None = None
        self.register_buffer("codes", codes.to(torch.int8 if format.signed else torch.uint8))
        self.register_buffer("scale", scale.float())
        self.register_buffer("zero_point", zero_point.to(torch.int32))

    @classmethod
    def nearest(cls, weight: Tensor, scale: Tensor, zero_point: Tensor, format: NumberFormat) -> IntegerWeight:
        """The weight ``[O, ...]`` rounded to its nearest codes on the grid of `scale` and `zero_point`, ``[O, 1]``."""
        return cls(quantize_weight(weight, scale, zero_point, format), scale, zero_point, format)

    def forward(self) -> Tensor:
        """The weight ``[O, ...]``."""
        if self._kept is not None:
            return self._kept
        with torch.inference_mode(False):  # else a value that is kept could not be used where gradients are asked for
            value = dequantize_weight(self.codes.float(), self.scale, self.zero_point.float()).to(self.dtype)
        if self.keeps_value and not self.training and not torch.compiler.is_compiling():
            self._kept = value
        return value

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the value that is kept is dropped."""
        self._kept = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._kept = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """All but the value that is kept."""
        return {**vars(self), "_kept": None}

    def extra_repr(self) -> str:
        """Shape and format."""
        return f"{tuple(self.codes.shape)}, {self.format}"


class ActivationQuantizer(InFloat32):
    """Rounds a tensor to its grid: ``step_size * clip(round(x / step_size))``.

    It is computed in float32 and has the dtype of its input; the step size stays in float32 where the module is cast.

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
