"""Operations that move, pool or pad values within their channel: where the channels are behind them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, fx

from genie_cli.models.graph.capture import aten

_AVERAGES: dict[Any, int] = {
    aten.avg_pool1d.default: 3,
    aten.avg_pool2d.default: 4,
    aten.avg_pool3d.default: 5,
}
_ADAPTIVE_AVERAGES: dict[Any, int] = {
    aten.adaptive_avg_pool1d.default: 3,
    aten.adaptive_avg_pool2d.default: 4,
    aten.adaptive_avg_pool3d.default: 5,
}
_MAXIMA: dict[Any, int] = {
    aten.max_pool1d.default: 3,
    aten.max_pool2d.default: 4,
    aten.max_pool3d.default: 5,
}
_POOLINGS = {**_MAXIMA, **_AVERAGES, **_ADAPTIVE_AVERAGES}
"""Poolings of one channel at a time, with the dimensions of a batch."""


def is_average(node: fx.Node) -> bool:
    """True if each value behind a node is an average of values before it, none of them a border of zeros."""
    if node.target is aten.mean.dim or node.target in _ADAPTIVE_AVERAGES:
        return True
    if node.target not in _AVERAGES:
        return False
    # window, stride, padding, ceil_mode, count_include_pad, divisor_override
    padding, divisor = node.args[3:4], node.args[6:7]
    sides = padding[0] if padding and isinstance(padding[0], list | tuple) else padding
    return not any(sides) and divisor in ((), (None,)) and not node.kwargs


def follow_channels(node: fx.Node, axis: int) -> tuple[int, int] | None:
    """Follow the channels through a node that moves or pools values within their channel.

    Args:
        node: any node; its first argument has channels.
        axis: the axis of the channels in that argument.

    Returns:
        The axis of the channels behind `node`, and the number of its entries per channel; None for
        any other operation.
    """
    source, value = node.args[0], node.meta.get("val")
    if not isinstance(source, fx.Node) or not isinstance(value, Tensor):
        return None
    before = source.meta["val"]
    if node.target in (aten.clone.default, aten.alias.default):
        return axis, 1
    if node.target in _POOLINGS:
        return (axis, 1) if axis == 1 and before.dim() == _POOLINGS[node.target] else None
    if node.target is aten.slice.Tensor:
        return (axis, 1) if len(node.args) > 1 and _dim(node.args[1], before) != axis else None
    padding = zero_padding(node)
    if padding is not None:
        return (axis, 1) if axis not in padding else None
    if node.target is aten.mean.dim:
        return _behind_mean(node, before.dim(), axis)
    if node.target is aten.reshape.default and axis == 1 and value.dim() == 2:
        sizes = before.shape[1:]
        if all(isinstance(size, int) for size in sizes) and value.shape[1] == math.prod(sizes):
            return 1, math.prod(sizes[1:])
    return None


def zero_padding(node: fx.Node) -> dict[int, tuple[int, int]] | None:
    """Dimension -> zeros before and behind it, of a padding by zeros; None for any other operation."""
    arguments: list[Any] = list(node.args)
    if node.target is aten.constant_pad_nd.default:
        sides, value = [*arguments[1:], 0][:2]
    elif node.target is aten.pad.default and arguments[2:3] in ([], ["constant"]):
        sides, value = arguments[1], [*arguments[3:], 0][0]
    else:
        return None
    if value not in (0, None) or node.kwargs or not all(isinstance(side, int) for side in sides):
        return None
    last = node.meta["val"].dim() - 1
    pairs = ((last - i // 2, (int(sides[i]), int(sides[i + 1]))) for i in range(0, len(sides), 2))
    return {dim: amounts for dim, amounts in pairs if any(amounts)}


def _dim(dim: Any, value: Tensor) -> int:
    return int(dim) % value.dim()


def _behind_mean(node: fx.Node, num_dims: int, axis: int) -> tuple[int, int] | None:
    dims, keep = node.args[1], len(node.args) > 2 and bool(node.args[2])
    if not isinstance(dims, list | tuple) or not dims:
        return None
    gone = {int(dim) % num_dims for dim in dims}  # type: ignore[arg-type]
    if gone & {0, axis}:
        return None
    return (axis if keep else axis - sum(dim < axis for dim in gone)), 1
