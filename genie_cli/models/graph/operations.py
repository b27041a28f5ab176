"""The operations that compute with a stored weight, each with the places of its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from genie_cli.models.graph.rows_first import contract, conv_transpose1d, conv_transpose2d, conv_transpose3d

aten = torch.ops.aten


@dataclass(frozen=True)
class WeightOperation:
    """An operation in the normal form: its weight has the output channels first, ``[O, ...]``.

    Attributes:
        kind: name that people know.
        inputs: places of the tensors that it reads from the network.
        weight: place of its weight.
        bias: place of its bias ``[O]``; None: it has none.
        stride: place of its strides; None: it has none.
        padding: place of its padding, sides or a word; None: it has none.
        groups: place of its number of groups; None: it has one.
        channels: where its output has the channels: 1, -1, or None where that is not one axis.
    """

    kind: str
    inputs: tuple[int, ...] = (0,)
    weight: int = 1
    bias: int | None = 2
    stride: int | None = None
    padding: int | None = None
    groups: int | None = None
    channels: int | None = 1


def _convolution(kind: str) -> WeightOperation:
    return WeightOperation(kind, stride=3, padding=4, groups=6)


_OPERATIONS: dict[Any, WeightOperation] = {
    aten.conv1d.default: _convolution("conv1d"),
    aten.conv1d.padding: _convolution("conv1d"),
    aten.conv2d.default: _convolution("conv2d"),
    aten.conv2d.padding: _convolution("conv2d"),
    aten.conv3d.default: _convolution("conv3d"),
    aten.conv3d.padding: _convolution("conv3d"),
    aten.linear.default: WeightOperation("linear", channels=-1),
    aten.bilinear.default: WeightOperation("bilinear", inputs=(0, 1), weight=2, bias=3, channels=-1),
    conv_transpose1d: _convolution("conv_transpose1d"),
    conv_transpose2d: _convolution("conv_transpose2d"),
    conv_transpose3d: _convolution("conv_transpose3d"),
    contract: WeightOperation("contraction", bias=None, channels=None),
}
_BY_NAME = {  # torchvision registers it when it is imported
    "torchvision.deform_conv2d.default": WeightOperation("deform_conv2d", bias=4),
}


def operation_of(node: fx.Node) -> WeightOperation | None:
    """The operation of a node; None where it computes with no weight."""
    if node.op != "call_function":
        return None
    return _OPERATIONS.get(node.target) or _BY_NAME.get(str(node.target))
