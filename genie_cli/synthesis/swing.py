"""Swing convolution (paper section 3.1.1): a strided convolution on a randomly shifted input.

The input is extended by reflection by one pixel on each side and cropped back to its size at a
random place; the convolution itself does not change. All images of a batch share one offset per
layer and step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from genie_cli.models.graph.layers import weight_layers

REACH = 1
"""Pixels of reflection on each side, so that offsets are 0, 1 or 2 (1: no shift)."""


class SwingShift(nn.Module):
    """Shifts its input by up to one pixel each way; the border is reflected."""

    def __init__(self) -> None:
        """Start without a shift."""
        super().__init__()
        self.offsets: Tensor | None = None
        """0, 1 or 2 for height and width, ``[2]`` int64 on the input's device; None: no shift."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape; an input of other rank stays as it is."""
        if self.offsets is None or x.dim() != 4:
            return x
        shifted: Tensor = _Shift.apply(x, self.offsets)
        return shifted


class _Shift(torch.autograd.Function):
    """Reflection and crop as one gather of pixels at a place that only the device knows.

    The host never reads the offsets, so that a step can be a CUDA graph. The backward pass gathers too:
    that of ``F.pad(mode="reflect")`` scatters, and is not deterministic on CUDA.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(offsets)
        height, width = x.shape[2:]
        rows = _reflect(torch.arange(height, device=x.device) + offsets[0] - REACH, height)
        columns = _reflect(torch.arange(width, device=x.device) + offsets[1] - REACH, width)
        return _gather_pixels(x, rows, columns)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (offsets,) = ctx.saved_tensors
        grad = grads[0]
        height, width = grad.shape[2:]
        # back to the extended input: outside the crop there is no gradient
        margin = 2 * REACH
        framed = F.pad(grad, (margin, margin, margin, margin))
        rows = torch.arange(height + margin, device=grad.device) + margin - offsets[0]
        columns = torch.arange(width + margin, device=grad.device) + margin - offsets[1]
        extended = _gather_pixels(framed, rows, columns)
        return _fold_border(_fold_border(extended, 2), 3), None


def _reflect(places: Tensor, size: int) -> Tensor:
    """Places from -1 to `size`, reflected into 0 to ``size - 1``; all are 0 where there is a single pixel."""
    if size == 1:
        return places * 0
    last = size - 1
    return last - (last - places.abs()).abs()


def _gather_pixels(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``x[:, :, rows][..., columns]``, channels-last, in one pass."""
    batch, channels, height, width = x.shape
    places = (rows.unsqueeze(1) * width + columns).flatten()
    pixels = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    return pixels.index_select(1, places).view(batch, len(rows), len(columns), channels).permute(0, 3, 1, 2)


def _fold_border(extended: Tensor, dim: int) -> Tensor:
    """Add the border's gradient to the pixels that the border mirrors, and cut the border off."""
    size = extended.shape[dim] - 2 * REACH
    inner = extended.narrow(dim, REACH, size)
    mirrored = (1, size - 2) if size > 1 else (0, 0)
    inner.select(dim, mirrored[0]).add_(extended.select(dim, 0))
    inner.select(dim, mirrored[1]).add_(extended.select(dim, size + REACH))
    return inner


def swing_strided_convolutions(graph_module: fx.GraphModule) -> list[SwingShift]:
    """Put a shift before every convolution whose stride is not 1, in place; returns the shifts."""
    shifts: list[SwingShift] = []
    for layer in weight_layers(graph_module):
        if not layer.is_strided_convolution:
            continue
        shift = SwingShift()
        target = f"swing_shifts.{len(shifts)}"
        graph_module.add_submodule(target, shift)
        with graph_module.graph.inserting_before(layer.node):
            shifted = graph_module.graph.call_module(target, (layer.node.args[0],))
        layer.node.args = (shifted, *layer.node.args[1:])
        shifts.append(shift)
    graph_module.recompile()
    return shifts


def draw_offsets(num_steps: int, num_shifts: int, generator: torch.Generator) -> Tensor:
    """Offsets of all steps: ``[num_steps, num_shifts, 2]`` int64, one per layer and spatial dimension."""
    return torch.randint(0, 2 * REACH + 1, (num_steps, num_shifts, 2), generator=generator)


def set_offsets(shifts: list[SwingShift], offsets: Tensor) -> None:
    """Use the offsets ``[num_shifts, 2]`` of one step."""
    for shift, own in zip(shifts, offsets.unbind(), strict=True):
        shift.offsets = own
