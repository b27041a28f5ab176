"""The operations that genie writes in ONNX itself, where torch's exporter writes none, another, or a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from genie_cli.runtime.extras import required

_quantized = torch.ops.quantized_decomposed
aten = torch.ops.aten
_NO_DTYPE = (None, -1)
"""The exporter's words for a `dtype` that an operation was not given."""


def translations(opset: int) -> dict[Any, Callable[..., Any]]:
    """Operation -> the function that writes it in ONNX."""
    op = required("onnxscript").values.Opset("", opset)
    return {**_of_quantizers(op), **_of_means(op), **_of_views(op)}


def _constant(op: Any, value: Any, dtype: Any) -> Any:
    return op.Constant(value=required("onnx_ir").tensor(np.array(value, dtype=dtype)))


def _of_quantizers(op: Any) -> dict[Any, Callable[..., Any]]:
    def dequantize_per_channel(
        codes: Any, scale: Any, zero_point: Any, axis: int, quant_min: int, quant_max: int, dtype: Any
    ) -> Any:
        return op.DequantizeLinear(codes, scale, op.Cast(zero_point, to=int(dtype)), axis=axis)

    def quantize_per_tensor(x: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: Any) -> Any:
        kind = dtype.numpy()
        limits, ends = np.iinfo(kind), (quant_min, quant_max)
        is_clipped = ends != (limits.min, limits.max)
        if is_clipped and kind == np.uint16:  # runtimes do not clip its codes; the values of the end codes do the same
            x = op.Clip(x, *(_constant(op, np.float32(scale) * (end - zero_point), np.float32) for end in ends))
            is_clipped = False
        codes = op.QuantizeLinear(x, _constant(op, scale, np.float32), _constant(op, zero_point, kind))
        return op.Clip(codes, *(_constant(op, end, kind) for end in ends)) if is_clipped else codes

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
    """Means and softmax, which are taken of a tensor that has been cast to their `dtype`."""
    ir = required("onnx_ir")

    def mean(x: Any, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: Any = None) -> Any:
        rank = len(x.shape)
        axes = sorted(axis % rank for axis in (dim or range(rank)))
        x = _cast(op, x, dtype)
        kind = x.dtype if dtype in _NO_DTYPE else dtype
        if axes != list(range(2, rank)) or kind != ir.DataType.FLOAT:
            return op.ReduceMean(x, _constant(op, axes, np.int64), keepdims=int(keepdim))
        pooled = op.GlobalAveragePool(x)  # of which runtimes have an integer kernel
        return pooled if keepdim else op.Squeeze(pooled, _constant(op, axes, np.int64))

    def softmax(x: Any, dim: int, dtype: Any = None) -> Any:
        return op.Softmax(_cast(op, x, dtype), axis=dim)

    def log_softmax(x: Any, dim: int, dtype: Any = None) -> Any:
        return op.LogSoftmax(_cast(op, x, dtype), axis=dim)

    return {aten.mean.dim: mean, aten.softmax.int: softmax, aten.log_softmax.int: log_softmax}


def _cast(op: Any, x: Any, dtype: Any) -> Any:
    """`x` as a `dtype` that an operation was given."""
    return x if dtype in _NO_DTYPE or dtype == x.dtype else op.Cast(x, to=int(dtype))


def _of_views(op: Any) -> dict[Any, Callable[..., Any]]:
    """Views that may be of the whole tensor."""

    def squeeze(x: Any, dim: int) -> Any:
        if not len(x.shape) or x.shape[dim] != 1:
            return op.Identity(x)
        return op.Squeeze(x, _constant(op, [dim], np.int64))

    return {aten.squeeze.dim: squeeze, torch.ops.prims.view_of.default: op.Identity}
