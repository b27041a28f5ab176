"""Swing convolution (paper section 3.1.1): a strided convolution on a randomly shifted input.

The input is extended by reflection by one pixel on each side and cropped back to its size at a
random place; the convolution itself stays as it is. One offset a layer and step serves the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from genie_cli.models.graph.layers import weight_layers

REACH = 1
"""Pixels of reflection on each side, so that offsets are 0, 1 or 2 (1: no shift)."""


class SwingShift(nn.Module):
    """Shifts its input by up to one pixel each way; the border is reflected."""

    def __init__(self) -> None:
        """Start without a shift."""
        super().__init__()
        self.offsets: tuple[int, ...] = ()
        """One of 0, 1, 2 for each spatial dimension; empty: no shift."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, ...]`` to the same shape."""
        for dim, offset in enumerate(self.offsets, start=2):
            if dim < x.dim():
                x = shift_reflected(x, dim, offset - REACH)
        return x


def shift_reflected(x: Tensor, dim: int, shift: int) -> Tensor:
    """Crop of the reflection-padded `x` that starts `shift` (-1, 0, 1) pixels on along `dim`.

    Built of slices and ``cat``, whose backward is deterministic on CUDA, unlike that of
    ``F.pad(mode="reflect")``. A single pixel has nothing to reflect and stays.
    """
    size = x.shape[dim]
    if shift == 0 or size < 2:
        return x
    if shift < 0:
        return torch.cat([x.narrow(dim, 1, 1), x.narrow(dim, 0, size - 1)], dim)
    return torch.cat([x.narrow(dim, 1, size - 1), x.narrow(dim, size - 2, 1)], dim)


def swing_strided_convolutions(graph_module: fx.GraphModule) -> list[SwingShift]:
    """Put a shift before every convolution whose stride is not 1, in place; returns the shifts."""
    shifts: list[SwingShift] = []
    for layer in weight_layers(graph_module):
        if all(stride == 1 for stride in layer.stride):
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


def draw_offsets(shifts: list[SwingShift], generator: torch.Generator) -> None:
    """New offsets for this step, one a layer and spatial dimension."""
    drawn = torch.randint(0, 2 * REACH + 1, (len(shifts), 2), generator=generator).tolist()
    for shift, offsets in zip(shifts, drawn, strict=True):
        shift.offsets = tuple(offsets)
