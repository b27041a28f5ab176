"""Operations by what an integer runtime does with them: keep a grid, compute in integers, clip as they write."""

from __future__ import annotations

import math
import operator
from typing import Any

from torch import Tensor, fx

from genie_cli.models.graph.capture import aten
from genie_cli.models.graph.channels import zero_padding

_MOVING: tuple[Any, ...] = (
    aten.alias.default,
    aten.channel_shuffle.default,
    aten.chunk.default,
    aten.clone.default,
    aten.expand.default,
    aten.flatten.using_ints,
    aten.flip.default,
    aten.index.Tensor,
    aten.index_select.default,
    aten.movedim.int,
    aten.narrow.default,
    aten.permute.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.reflection_pad1d.default,
    aten.reflection_pad2d.default,
    aten.repeat.default,
    aten.replication_pad1d.default,
    aten.replication_pad2d.default,
    aten.reshape.default,
    aten.roll.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.transpose.int,
    aten.unbind.int,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest3d.vec,
)
_CHOOSING: tuple[Any, ...] = (
    aten.amax.default,
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.max_pool3d.default,
)
_CHOOSING_WITH_PLACES: tuple[Any, ...] = (
    aten.adaptive_max_pool1d.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
    aten.max_pool1d_with_indices.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool3d_with_indices.default,
)
"""Each returns the values and the places where they were."""
_MEANS: tuple[Any, ...] = (aten.mean.dim,)
_ADAPTIVE_MEANS: tuple[Any, ...] = (
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default,
)
_ARITHMETIC: tuple[Any, ...] = (
    # two tensors
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.bmm.default,
    aten.einsum.default,
    aten.matmul.default,
    aten.mm.default,
    # any number of tensors
    aten.cat.default,
    aten.stack.default,
    # poolings that average
    *_ADAPTIVE_MEANS,
    *_MEANS,
    aten.avg_pool1d.default,
    aten.avg_pool2d.default,
    aten.avg_pool3d.default,
    # resizing that interpolates
    aten.upsample_bicubic2d.vec,
    aten.upsample_bilinear2d.vec,
    aten.upsample_linear1d.vec,
    aten.upsample_trilinear3d.vec,
)
_CLIPS: tuple[Any, ...] = (
    aten.clamp.default,
    aten.clamp_max.default,
    aten.clamp_min.default,
    aten.hardtanh.default,
    aten.relu.default,
    aten.relu6.default,
)


def keeps_grid(node: fx.Node) -> bool:
    """True if the values behind a node are values of its first argument, or zeros: they are on the same grid.

    Such a node moves or repeats values, or takes the largest of several.
    """
    if node.target is operator.getitem:
        source, place = node.args
        if not isinstance(source, fx.Node):
            return False
        return source.target in (*_MOVING, *(_CHOOSING_WITH_PLACES if place == 0 else ()))
    if node.target in (aten.pad.default, aten.constant_pad_nd.default):
        is_copied = node.target is aten.pad.default and node.args[2:3] not in ((), ("constant",))
        return is_copied or zero_padding(node) is not None
    return node.target in (*_MOVING, *_CHOOSING, *_CHOOSING_WITH_PLACES)


def grid_source(node: fx.Node) -> fx.Node:
    """The node that wrote the values of `node` first, before they were moved; `node` itself where none did."""
    while keeps_grid(node):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return node


def is_arithmetic(node: fx.Node, activations: set[fx.Node]) -> bool:
    """True if an integer kernel computes a node from activations alone, no stored weight among them."""
    return node.target in _ARITHMETIC and all(source in activations for source in _operands(node))


def positions_averaged(node: fx.Node) -> int | None:
    """The number of positions that a node takes the mean over, if it takes that over all of each channel; else None."""
    source = node.args[0] if node.target in (*_MEANS, *_ADAPTIVE_MEANS) else None
    value = source.meta.get("val") if isinstance(source, fx.Node) else None
    if not isinstance(value, Tensor) or value.dim() < 3 or not all(isinstance(side, int) for side in value.shape[2:]):
        return None
    if node.target in _MEANS:
        dims = node.args[1] if len(node.args) > 1 else None
        is_whole = isinstance(dims, list | tuple) and {dim % value.dim() for dim in dims} == {*range(2, value.dim())}
    else:
        sides = node.args[1]
        is_whole = isinstance(sides, list | tuple) and all(side == 1 for side in sides)
    return math.prod(value.shape[2:]) if is_whole else None


def gives_floats(node: fx.Node) -> bool:
    """True for a layer whose integer kernel can give its sums as floats, without a quantizer behind it."""
    return node.target is aten.linear.default


def is_clip(node: fx.Node) -> bool:
    """True for a function that an integer kernel applies by the clipping of its codes: ReLU, ReLU6, a clamp."""
    return node.target in _CLIPS and len(node.all_input_nodes) == 1


def clip_bounds(node: fx.Node) -> tuple[float | None, float | None] | None:
    """Lower and upper bound of a clip by numbers, each None where it is missing; None for any other operation."""
    if node.kwargs or not is_clip(node):
        return None
    given: list[Any] = list(node.args[1:])
    if node.target is aten.relu.default:
        given = [0.0, None]
    elif node.target is aten.relu6.default:
        given = [0.0, 6.0]
    elif node.target is aten.hardtanh.default:
        given += (-1.0, 1.0)[len(given) :]
    elif node.target is aten.clamp_max.default:
        given = [None, *given]
    low, high = (None if bound is None else float(bound) for bound in [*given, None, None][:2])
    return low, high


def _operands(node: fx.Node) -> list[Any]:
    """The tensors of an arithmetic operation, numbers in their place too, which are no activations."""
    if node.target in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor):
        return list(node.args[:2])
    return list(node.all_input_nodes)
