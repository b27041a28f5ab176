"""Max pooling whose gradient is the same in every run, on CUDA too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from genie_cli.models.graph.capture import aten


def repeat_max_pool_gradients(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Replace the max poolings of a graph that gradients pass through, in place; CPU results stay as they are.

    PyTorch's CUDA kernel adds overlapping windows with atomics, in whatever order they come.
    """
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.target is aten.max_pool2d.default:
            node.target = max_pool2d
    graph_module.recompile()
    return graph_module


def max_pool2d(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Tensor:
    """``aten.max_pool2d`` of ``x [B, C, H, W]`` with a gradient that repeats bit for bit."""
    geometry = (_pair(kernel_size), _pair(stride or kernel_size), _pair(padding), _pair(dilation))
    if x.device.type == "cpu":
        return F.max_pool2d(x, *geometry, ceil_mode=ceil_mode)
    pooled: Tensor = _MaxPool.apply(x, *geometry, ceil_mode)
    return pooled


def _pair(sides: Sequence[int]) -> tuple[int, int]:
    return (int(sides[0]), int(sides[-1]))


class _MaxPool(torch.autograd.Function):
    """Max pooling that adds the windows' gradients one place of the window at a time: no two of these overlap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Tensor:
        pooled, places = F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode, return_indices=True)
        ctx.save_for_backward(places)
        ctx.geometry = (tuple(x.shape[2:]), kernel, stride, padding, dilation)
        return pooled

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        (height, width), kernel, stride, padding, dilation = ctx.geometry
        grad = grads[0]
        rows, columns = grad.shape[2:]
        sides = [
            max((count - 1) * s + (k - 1) * d + 1, p + size)
            for count, s, k, d, p, size in zip(
                (rows, columns), stride, kernel, dilation, padding, (height, width), strict=True
            )
        ]
        padded = grad.new_zeros(*grad.shape[:2], *sides)
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                top, left = i * dilation[0], j * dilation[1]
                y = torch.arange(rows, device=grad.device) * stride[0] + top - padding[0]
                x = torch.arange(columns, device=grad.device) * stride[1] + left - padding[1]
                inside = ((y >= 0) & (y < height)).unsqueeze(1) & ((x >= 0) & (x < width))
                place = torch.where(inside, y.unsqueeze(1) * width + x, -1)
                window = padded[
                    :,
                    :,
                    top : top + (rows - 1) * stride[0] + 1 : stride[0],
                    left : left + (columns - 1) * stride[1] + 1 : stride[1],
                ]
                window += grad * (places == place)
        inner = padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width]
        return inner, None, None, None, None, None
