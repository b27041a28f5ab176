"""The operations that genie writes in ONNX itself, where torch's exporter writes none, another, or a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from genie_cli.runtime.extras import required

_quantized = torch.ops.quantized_decomposed
aten = torch.ops.aten


def translations(opset: int) -> dict[Any, Callable[..., Any]]:
    """Operation -> the function that writes it in ONNX."""
    op = required("onnxscript").values.Opset("", opset)
    return {**_of_quantizers(op), **_of_means(op)}


def _constant(op: Any, value: Any, dtype: Any) -> Any:
    return op.Constant(value=required("onnx_ir").tensor(np.array(value, dtype=dtype)))


def _of_quantizers(op: Any) -> dict[Any, Callable[..., Any]]:
    def dequantize_per_channel(
        codes: Any, scale: Any, zero_point: Any, axis: int, quant_min: int, quant_max: int, dtype: Any
    ) -> Any:
        return op.DequantizeLinear(codes, scale, op.Cast(zero_point, to=int(dtype)), axis=axis)

    def quantize_per_tensor(x: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: Any) -> Any:
        kind = dtype.numpy()
        codes = op.QuantizeLinear(x, _constant(op, scale, np.float32), _constant(op, zero_point, kind))
        limits = np.iinfo(kind)
        if (quant_min, quant_max) == (limits.min, limits.max):
            return codes
        return op.Clip(codes, _constant(op, quant_min, kind), _constant(op, quant_max, kind))

    def dequantize_per_tensor(
        codes: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: Any
    ) -> Any:
        return op.DequantizeLinear(codes, _constant(op, scale, np.float32), _constant(op, zero_point, dtype.numpy()))

    return {
        _quantized.dequantize_per_channel.default: dequantize_per_channel,
        _quantized.quantize_per_tensor.default: quantize_per_tensor,
        _quantized.dequantize_per_tensor.default: dequantize_per_tensor,
    }


def _of_means(op: Any) -> dict[Any, Callable[..., Any]]:
    def mean(x: Any, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: Any = None) -> Any:
        rank = len(x.shape)
        axes = sorted(axis % rank for axis in (dim or range(rank)))
        if axes != list(range(2, rank)):
            return op.ReduceMean(x, _constant(op, axes, np.int64), keepdims=int(keepdim))
        pooled = op.GlobalAveragePool(x)  # of which runtimes have an integer kernel
        return pooled if keepdim else op.Squeeze(pooled, _constant(op, axes, np.int64))

    return {aten.mean.dim: mean}
