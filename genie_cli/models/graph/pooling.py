"""Poolings whose gradients are the same in every run, on CUDA too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from genie_cli.models.graph.capture import aten

_ORDERED_FROM = (9, 0)
"""Compute capability from which PyTorch's kernel of max pooling's gradient was seen to use no atomics."""


def with_repeatable_pooling(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Replace the poolings of a graph that gradients pass through, in place; CPU results stay as they are.

    PyTorch refuses the CUDA gradients of max and adaptive average pooling where results have to repeat.
    """
    replacements: dict[Any, Any] = {
        aten.max_pool2d.default: max_pool2d,
        aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d,
        aten._adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    }
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.target in replacements:
            node.target = replacements[node.target]
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
    if not x.is_cuda:
        return F.max_pool2d(x, *geometry, ceil_mode=ceil_mode)
    is_ordered = torch.cuda.get_device_capability(x.device) >= _ORDERED_FROM
    pooled: Tensor = (_NativeMaxPool if is_ordered else _MaxPool).apply(x, *geometry, ceil_mode)
    return pooled


def adaptive_avg_pool2d(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """``aten.adaptive_avg_pool2d`` of ``x [B, C, H, W]`` with a gradient that repeats bit for bit."""
    if not x.is_cuda:
        return F.adaptive_avg_pool2d(x, _pair(output_size))
    sizes, wanted = tuple(x.shape[2:]), _pair(output_size)
    if sizes == wanted:
        return x
    if all(size % own == 0 for size, own in zip(sizes, wanted, strict=True)):
        return F.avg_pool2d(x, (sizes[0] // wanted[0], sizes[1] // wanted[1]))
    rows, columns = (_averages(size, own, x) for size, own in zip(sizes, wanted, strict=True))
    return torch.einsum("uh,bchw,vw->bcuv", rows, x, columns)


def _averages(size: int, wanted: int, like: Tensor) -> Tensor:
    """The matrix ``[wanted, size]`` that averages `size` entries to `wanted`: windows as PyTorch's, which overlap."""
    places = torch.arange(size, device=like.device)
    windows = torch.arange(wanted, device=like.device).unsqueeze(1)
    inside = (places >= windows * size // wanted) & (places < -(-(windows + 1) * size // wanted))
    return (inside / inside.sum(1, keepdim=True)).to(like.dtype)


def _pair(sides: Sequence[int]) -> tuple[int, int]:
    return (int(sides[0]), int(sides[-1]))


@contextmanager
def _trusted() -> Iterator[None]:
    """Let a kernel run that repeats although PyTorch lists it among those that do not."""
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_deterministic)


class _NativeMaxPool(torch.autograd.Function):
    """PyTorch's own kernels, of which the gradient's sums each input pixel in one thread."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Tensor:
        pooled, places = F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode, return_indices=True)
        ctx.save_for_backward(x, places)
        ctx.geometry = (kernel, stride, padding, dilation, ceil_mode)
        return pooled

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, places = ctx.saved_tensors
        with _trusted():
            grad = aten.max_pool2d_with_indices_backward(grads[0], x, *ctx.geometry, places)
        return grad, None, None, None, None, None


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
