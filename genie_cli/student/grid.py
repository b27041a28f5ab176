"""The integer grid as pure functions: step sizes, quantize, dequantize, fake quantize.

The codes are those of a `NumberFormat`.

Weights: per output channel; ``w' = scale * (code - zero_point)``, where the zero point of a symmetric grid is 0.
Slopes of leaky rectifiers: the same with one scale, as a weight of one channel.
Activations: symmetric, per tensor; ``x' = step_size * code``.

Shapes: O output channels (1 per tensor), K = elements per channel. Weight scales and zero points are ``[O, 1]``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from genie_cli.student.formats import NumberFormat

NUM_RATIOS = 100
"""Clipping ratios searched: 1.00, 0.99, ... 0.01 of the full range."""
ERROR_POWER = 2.4
"""Exponent of the search's error |x - q(x)|^p (authors' constant)."""
NUM_FINALISTS = 12
"""Ratios that the search compares on all values, where there are many: those that are best on a sample."""
_ROUGH_SAMPLES = 1 << 14
_TINY_RANGE = 1e-30
"""Below this a channel counts as zero: its scale is 1 and all its codes are the zero point."""
_CHUNK = 1 << 22
"""Elements searched at once, which bounds the memory of the search."""


def weight_grid(
    weight: Tensor, format: NumberFormat, weight_range: Literal["search", "minmax"]
) -> tuple[Tensor, Tensor]:
    """Scale and zero point ``[O, 1]`` of a weight ``[O, ...]``, found as `weight_range` says."""
    return (search_weight_grid if weight_range == "search" else minmax_weight_grid)(weight, format)


def minmax_weight_grid(weight: Tensor, format: NumberFormat) -> tuple[Tensor, Tensor]:
    """Scale and zero point ``[O, 1]`` that span the range of each output channel (Eq. 3).

    Zero is always in the range, so that it is exact on the grid. A symmetric grid has the smallest scale whose outer
    codes reach both ends of the range.
    """
    rows = _channel_rows(weight, format)
    return _grid_of_range(rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0), format)


def search_weight_grid(weight: Tensor, format: NumberFormat) -> tuple[Tensor, Tensor]:
    """Scale and zero point ``[O, 1]`` of least sum |w - q(w)|^2.4 per channel over clipping ratios (Eq. 6)."""
    rows = _channel_rows(weight, format)
    per_chunk = max(1, _CHUNK // max(1, rows.shape[1]))
    parts = [_search_rows(chunk, format) for chunk in rows.split(per_chunk)]
    return torch.cat([scale for scale, _ in parts]), torch.cat([zero_point for _, zero_point in parts])


def _channel_rows(weight: Tensor, format: NumberFormat) -> Tensor:
    """The weight as float32 ``[O, K]``, one row per channel; per tensor ``[1, K]``."""
    assert format.axis in (0, None) and (format.signed or not format.symmetric), f"no weight grid is found for {format}"
    values = weight.detach().float()
    return values.reshape(1, -1) if format.axis is None else values.flatten(1)


def _search_rows(rows: Tensor, format: NumberFormat) -> tuple[Tensor, Tensor]:
    low = rows.amin(1, keepdim=True).clamp(max=0)
    high = rows.amax(1, keepdim=True).clamp(min=0)
    best_error = torch.full_like(low, torch.inf)
    best_scale, best_zero_point = _grid_of_range(low, high, format)
    for i in range(NUM_RATIOS):
        ratio = 1 - i / NUM_RATIOS
        scale, zero_point = _grid_of_range(low * ratio, high * ratio, format)
        restored = dequantize_weight(quantize_weight(rows, scale, zero_point, format), scale, zero_point)
        error = _power(rows - restored).sum(1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_zero_point = torch.where(better, zero_point, best_zero_point)
    return best_scale, best_zero_point


def _power(error: Tensor) -> Tensor:
    """``|error| ** ERROR_POWER`` in place; as exp and log, which processors have as vectors."""
    return error.abs_().log_().mul_(ERROR_POWER).exp_()


def _grid_of_range(low: Tensor, high: Tensor, format: NumberFormat) -> tuple[Tensor, Tensor]:
    if format.symmetric:
        scale = torch.maximum(low / format.quant_min, high / format.quant_max)
    else:
        scale = (high - low) / (format.quant_max - format.quant_min)
    scale = torch.where(high - low < _TINY_RANGE, torch.ones_like(scale), scale)
    if format.symmetric:
        return scale, torch.zeros_like(scale)
    return scale, (format.quant_min - low / scale).round().clamp(format.quant_min, format.quant_max)


def quantize_weight(weight: Tensor, scale: Tensor, zero_point: Tensor, format: NumberFormat) -> Tensor:
    """Codes of the nearest grid points, as floats in the shape of `weight` (Eq. 1)."""
    codes = (weight / like_rows(scale, weight)).round_().add_(like_rows(zero_point, weight))
    return codes.clamp_(format.quant_min, format.quant_max)


def dequantize_weight(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``scale * (code - zero_point)`` in the shape of `codes` (Eq. 2)."""
    return (codes - like_rows(zero_point, codes)) * like_rows(scale, codes)


def like_rows(values: Tensor, weight: Tensor) -> Tensor:
    """``[O, 1]`` values per channel, shaped to broadcast over ``weight [O, ...]``; ``[1, 1]`` over any shape."""
    return values.view((-1, *[1] * (weight.dim() - 1))[: weight.dim()])


def minmax_step_size(values: Tensor, format: NumberFormat) -> float:
    """Step size that spans the largest magnitude of `values` (any shape)."""
    assert format.symmetric, f"no step size without a zero point is found for {format}"
    largest = float(values.detach().abs().amax())
    return largest / format.quant_max if largest > _TINY_RANGE else 1.0


def search_step_size(values: Tensor, format: NumberFormat, extremes: Tensor | None = None) -> float:
    """Step size of least mean |x - q(x)|^2.4 over clipping ratios of the largest magnitude (Eq. 6).

    Args:
        values: the values that the error is taken over, any shape.
        format: the codes; symmetric, per tensor.
        extremes: smallest and largest value of what `values` is a sample of; None: it is no sample.
    """
    flat = values.detach().float().flatten()
    full = minmax_step_size(flat if extremes is None else extremes, format)
    step_sizes = [full * (1 - i / NUM_RATIOS) for i in range(NUM_RATIOS)]
    if len(flat) > NUM_FINALISTS * _ROUGH_SAMPLES:
        errors = _rough_errors(flat, step_sizes, format)
        best_first = sorted(range(NUM_RATIOS), key=errors.__getitem__)
        step_sizes = [step_sizes[i] for i in sorted(best_first[:NUM_FINALISTS])]
    return min(step_sizes, key=lambda step_size: _summed_error(flat, step_size, format))


def _rough_errors(flat: Tensor, step_sizes: list[float], format: NumberFormat) -> list[float]:
    """Estimates of the summed errors: all the largest values, which clipping is about, and a sample of the rest."""
    magnitudes = flat.abs()
    is_large = magnitudes >= magnitudes.kthvalue(len(flat) - _ROUGH_SAMPLES // 4).values
    large, others = flat[is_large], flat[~is_large]
    stride = len(flat) // _ROUGH_SAMPLES | 1  # odd: not the same columns of every row
    return [
        _summed_error(large, step_size, format) + stride * _summed_error(others[::stride], step_size, format)
        for step_size in step_sizes
    ]


def _summed_error(flat: Tensor, step_size: float, format: NumberFormat) -> float:
    return float(_power(flat - fake_quantize(flat, step_size, format)).sum())


def fake_quantize(x: Tensor, step_size: Tensor | float, format: NumberFormat) -> Tensor:
    """The nearest points of the activation grid, found in float32 or better, in the shape and dtype of `x`."""
    exact = x if x.dtype == torch.float64 else x.float()
    return (exact / step_size).round_().clamp_(format.quant_min, format.quant_max).mul_(step_size).to(x.dtype)
