"""Batch norms that move into the layers that read them, where that is exact.

With y = a x + c per channel, a layer computes W y + b = (W a) x + (b + W c), if its kernel lies inside of its input
everywhere. A border of zeros stands behind the batch norm, not before it: a padded convolution does not take one in.
Averages within a channel change places with an affine map; an activation function or a maximum does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from genie_cli.errors import InputError
from genie_cli.models.graph.batch_norm import BatchNormSite, remove_batch_norm
from genie_cli.models.graph.capture import aten
from genie_cli.models.graph.channels import follow_channels, is_average
from genie_cli.models.graph.layers import WeightLayer, input_axis, set_bias
from genie_cli.models.graph.tensors import get_tensor, set_tensor

_MOVED_PAST = (aten.clone.default, aten.alias.default, aten.slice.Tensor, aten.reshape.default)
"""Operations that move values or drop them."""


@dataclass(frozen=True)
class Reader:
    """A layer that takes a batch norm in.

    Attributes:
        layer: the layer.
        repeats: its input features per channel, more than one behind a flattening.
    """

    layer: WeightLayer
    repeats: int


def readers_of(
    graph_module: fx.GraphModule, site: BatchNormSite, layers: dict[fx.Node, WeightLayer]
) -> list[Reader] | str:
    """The layers that can take a batch norm in, which are all that read it; or the reason why they cannot."""
    found: list[Reader] = []
    waiting: list[tuple[fx.Node, int, int]] = [(site.node, 1, 1)]
    while waiting:
        node, axis, repeats = waiting.pop()
        for reader in node.users:
            if reader.op == "output":
                return "it is the network's output"
            if reader in layers:
                reason = _reason_against(graph_module, layers[reader], node, axis)
                if reason is not None:
                    return reason
                found.append(Reader(layers[reader], repeats))
                continue
            passes = reader.target in _MOVED_PAST or is_average(reader)
            followed = follow_channels(reader, axis) if passes and reader.args[0] is node else None
            if followed is None:
                return f"{operation_name(reader)} reads it"
            waiting.append((reader, followed[0], repeats * followed[1]))
    return found


def move_into_readers(graph_module: fx.GraphModule, site: BatchNormSite, readers: list[Reader]) -> None:
    """Multiply a batch norm into the layers that read it, and take it out of the graph; products in float64.

    Raises:
        InputError: a weight is not finite then (broken running statistics).
    """
    multiplier, offset = site.affine()
    for reader in readers:
        layer = reader.layer
        weight = get_tensor(graph_module, layer.weight_key)
        columns = (layer.groups, -1, len(multiplier) * reader.repeats // layer.groups, math.prod(weight.shape[2:]))
        grouped = weight.double().reshape(columns)
        scale, shift = (_columns(values, reader, columns[2]) for values in (multiplier, offset))
        new_weight = (grouped * scale).reshape(weight.shape).to(weight.dtype)
        added = (grouped * shift).sum((2, 3)).flatten()
        bias = get_tensor(graph_module, layer.bias_key).double() if layer.bias_key else torch.zeros_like(added)
        new_bias = (bias + added).to(weight.dtype)
        if not (torch.isfinite(new_weight).all() and torch.isfinite(new_bias).all()):
            raise InputError(
                f"Batch norm '{site.name}' cannot be moved: its statistics give values that are not finite."
            )
        set_tensor(graph_module, layer.weight_key, new_weight)
        set_bias(graph_module, layer, new_bias)
    remove_batch_norm(graph_module, site)


def operation_name(node: fx.Node) -> str:
    """The name of a node's operation, for people."""
    return "the input" if node.op == "placeholder" else getattr(node.target, "__name__", str(node.target)).split(".")[0]


def _columns(values: Tensor, reader: Reader, per_group: int) -> Tensor:
    """``[C]`` over the input features of a layer: ``[groups, 1, C * repeats / groups, 1]``."""
    return values.repeat_interleave(reader.repeats).view(reader.layer.groups, 1, per_group, 1)


def _reason_against(graph_module: fx.GraphModule, layer: WeightLayer, source: fx.Node, axis: int) -> str | None:
    if layer.kind not in ("linear", "conv1d", "conv2d", "conv3d") or layer.sources != (source,):
        return f"{layer.kind} {layer.name} reads it"
    if input_axis(graph_module, layer) != axis:
        return f"its channels are not the input channels of {layer.name}"
    kernel = tuple(get_tensor(graph_module, layer.weight_key).shape[2:])
    return f"{layer.name} reads it with a border of zeros" if layer.has_border(kernel) else None
