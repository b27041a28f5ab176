"""Cross-layer equalization: channels of two layers rescaled against each other, the function kept.

M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019
(arXiv 1906.04721), section 4.1. For f(s x) = s f(x) with s > 0, channel by channel,

    W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1),   s_i = sqrt(r1_i / r2_i),

where r1_i is the largest weight of channel i in layer 1 and r2_i in layer 2: both become sqrt(r1_i r2_i).
The paper replaces ReLU6 by ReLU, as it is not homogeneous. Here its bounds are divided by s too, so
that the network computes the same.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from genie_cli.models.graph.capture import aten
from genie_cli.models.graph.channels import follow_channels
from genie_cli.models.graph.folding import FoldedGraph
from genie_cli.models.graph.integer_operations import clip_bounds
from genie_cli.models.graph.layers import WeightLayer, input_axis, output_axis, weight_layers
from genie_cli.models.graph.tensors import get_tensor, set_tensor

CHANNEL_CLIPS = "channel_clips"
"""Prefix of the bounds that equalization puts into a graph; a captured network has no such tensors."""
MAX_ROUNDS = 100
_TOLERANCE = 1e-4
"""Equalization ends once no channel is rescaled by more than this share."""
_DEAD = 1e-4
"""A channel whose r1 r2 is below this share of the largest one keeps its scale: hardly anything of its
input gets through, and its bias, divided by a tiny s, could take the activation's whole range."""
_HOMOGENEOUS = (aten.relu.default, aten.leaky_relu.default, aten.prelu.default)


@dataclass(frozen=True)
class Clip:
    """A clip between two layers: a node that bounds its input by numbers other than 0.

    Attributes:
        node: the node.
        axis: the axis of the channels in its tensor.
        repeats: entries of that axis per channel, more than one behind a flattening.
    """

    node: fx.Node
    axis: int
    repeats: int


@dataclass(frozen=True)
class LayerPair:
    """Two layers with nothing but homogeneous operations and clips between them, and no other reader.

    Attributes:
        first: the layer whose output channels are rescaled.
        second: the layer that reads them.
        repeats: input features of `second` per channel, more than one behind a flattening.
        clips: the clips between them in data-flow order.
    """

    first: WeightLayer
    second: WeightLayer
    repeats: int
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class EqualizedGraph:
    """A folded graph whose layers are equalized.

    Attributes:
        folded: the new graph. It has no multipliers of layers with rescaled inputs: one number per row
            no longer leads from the checkpoint's weight to theirs.
        scales: first layer of a pair -> ``[O]`` float64, the divisors of its output.
    """

    folded: FoldedGraph
    scales: dict[str, Tensor]


def equalize(folded: FoldedGraph) -> EqualizedGraph:
    """Equalize all pairs of a folded graph in turn until nothing changes; the given one is left as it was.

    Scales are found in float64. Chains such as convolution, depthwise, convolution are pairs one after
    the other.
    """
    graph = copy.deepcopy(folded.graph)
    pairs = layer_pairs(graph)
    scales = _find_scales(graph, pairs)
    for pair in pairs:
        scale = scales[pair.first.name]
        _rescale(graph, pair.first.weight_key, (1 / scale).view(-1, 1, 1, 1), (len(scale), 1, 1, -1))
        if pair.first.bias_key is not None:
            _rescale(graph, pair.first.bias_key, 1 / scale, (-1,))
        groups = pair.second.groups
        columns = (groups, -1, len(scale) // groups, _kernel_size(graph, pair))
        _rescale(graph, pair.second.weight_key, scale.view(groups, 1, -1, 1), columns)
        for key, clip in zip(_clip_keys(pair), pair.clips, strict=True):
            _set_bounds(graph, clip, key, scale)
    graph.graph.lint()
    graph.recompile()
    inputs = {pair.second.name for pair in pairs}
    multipliers = {
        name: multiplier / scales[name].float() if name in scales else multiplier
        for name, multiplier in folded.multipliers.items()
        if name not in inputs
    }
    return EqualizedGraph(replace(folded, graph=graph, multipliers=multipliers, error=None), scales)


def add_channel_clips(graph_module: fx.GraphModule) -> None:
    """Give a folded graph the per-channel clips of an equalized one, in place, with the bounds as they were.

    It takes no weights: a stored equalized network finds its graph again this way. Call it only where
    `has_channel_clips` is true, and only once.
    """
    for pair in layer_pairs(graph_module):
        ones = torch.ones(len(get_tensor(graph_module, pair.first.weight_key)), dtype=torch.float64)
        for key, clip in zip(_clip_keys(pair), pair.clips, strict=True):
            _set_bounds(graph_module, clip, key, ones)
    graph_module.graph.lint()
    graph_module.recompile()


def has_channel_clips(keys: Iterable[str]) -> bool:
    """True if tensors of these names are those of a network with per-channel clips."""
    return any(key.startswith(f"{CHANNEL_CLIPS}.") for key in keys)


def layer_pairs(graph_module: fx.GraphModule) -> list[LayerPair]:
    """All pairs of a folded graph, in data-flow order of their first layers; no weight's value changes them."""
    layers = weight_layers(graph_module)
    by_node = {layer.node: layer for layer in layers}
    pairs = (_pair_of(graph_module, layer, by_node) for layer in layers)
    return [pair for pair in pairs if pair is not None]


def channel_bounds(graph_module: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Bounds ``[C]`` of a clip that equalization made, infinite where one is missing; None for any other clip."""
    bounds = []
    for bound, missing in zip([*node.args[1:], None, None][:2], (-math.inf, math.inf), strict=True):
        if bound is None:
            bounds.append(torch.tensor(missing))
        elif isinstance(bound, fx.Node) and has_channel_clips([str(bound.target)]):
            bounds.append(get_tensor(graph_module, str(bound.target)).flatten())
        else:
            return None
    low, high = bounds
    return low, high


def _pair_of(graph_module: fx.GraphModule, first: WeightLayer, by_node: dict[fx.Node, WeightLayer]) -> LayerPair | None:
    clips: list[Clip] = []
    node, axis, repeats = first.node, output_axis(graph_module, first), 1
    while axis is not None:
        readers = list(node.users)
        if len(readers) != 1 or not readers[0].args or readers[0].args[0] is not node:
            return None
        node = readers[0]
        if node in by_node:
            second = by_node[node]
            fits = input_axis(graph_module, second) == axis
            return LayerPair(first, second, repeats, tuple(clips)) if fits else None
        if node.target in _HOMOGENEOUS:
            continue
        bounds = clip_bounds(node)
        if bounds is not None:
            if any(bounds):  # bounds of 0 do not change
                clips.append(Clip(node, axis, repeats))
            continue
        followed = follow_channels(node, axis)
        if followed is None:
            return None
        axis, repeats = followed[0], repeats * followed[1]
    return None


def _kernel_size(graph_module: fx.GraphModule, pair: LayerPair) -> int:
    """Elements of the second layer's weight per row and channel."""
    return pair.repeats * math.prod(get_tensor(graph_module, pair.second.weight_key).shape[2:])


def _find_scales(graph_module: fx.GraphModule, pairs: list[LayerPair]) -> dict[str, Tensor]:
    """First layer of a pair -> s ``[O]``, found from each weight's largest magnitude per input channel."""
    sizes: dict[str, Tensor] = {}  # [O, I / groups]
    kernels = {pair.second.name: _kernel_size(graph_module, pair) for pair in pairs}
    for layer in {layer.name: layer for pair in pairs for layer in (pair.first, pair.second)}.values():
        weight = get_tensor(graph_module, layer.weight_key).detach().abs()
        kernel = kernels.get(layer.name, math.prod(weight.shape[2:]))
        sizes[layer.name] = weight.reshape(len(weight), -1, kernel).amax(2).double()
    alive = {pair.first.name: _are_alive(*_ranges(sizes, pair)) for pair in pairs}
    scales = {name: torch.ones(len(mask), dtype=torch.float64) for name, mask in alive.items()}
    for _ in range(MAX_ROUNDS):
        largest_change = 0.0
        for pair in pairs:
            rows, columns = _ranges(sizes, pair)
            scale = torch.where(alive[pair.first.name], (rows / columns).sqrt(), torch.ones_like(rows))
            sizes[pair.first.name] /= scale.view(-1, 1)
            second, groups = sizes[pair.second.name], pair.second.groups
            grouped = second.view(groups, -1, second.shape[1]) * scale.view(groups, 1, -1)
            sizes[pair.second.name] = grouped.view_as(second)
            scales[pair.first.name] *= scale
            largest_change = max(largest_change, float(scale.log().abs().amax()))
        if largest_change < _TOLERANCE:
            break
    return scales


def _ranges(sizes: dict[str, Tensor], pair: LayerPair) -> tuple[Tensor, Tensor]:
    """r1 and r2: largest weight of each channel in the first and in the second layer."""
    second = sizes[pair.second.name]
    columns = second.view(pair.second.groups, -1, second.shape[1]).amax(1).flatten()
    return sizes[pair.first.name].amax(1), columns


def _are_alive(rows: Tensor, columns: Tensor) -> Tensor:
    products = rows * columns  # rescaling does not change them
    return (products > _DEAD * products.amax()) & products.isfinite()


def _rescale(graph_module: fx.GraphModule, key: str, factors: Tensor, shape: tuple[int, ...]) -> None:
    value = get_tensor(graph_module, key)
    scaled = value.reshape(shape) * factors.to(value.dtype)
    set_tensor(graph_module, key, scaled.reshape(value.shape))


def _clip_keys(pair: LayerPair) -> list[str]:
    return [f"{CHANNEL_CLIPS}.{pair.first.name}.clip{i}" for i in range(len(pair.clips))]


def _set_bounds(graph_module: fx.GraphModule, clip: Clip, key: str, scale: Tensor) -> None:
    """Turn `clip` into one with bounds ``bound / scale`` per channel."""
    bounds = clip_bounds(clip.node)
    assert bounds is not None
    divisors = scale.repeat_interleave(clip.repeats)
    trailing = clip.node.meta["val"].dim() - clip.axis - 1
    arguments: list[fx.Node | None] = []
    for side, bound in zip(("low", "high"), bounds, strict=True):
        if bound is None:
            arguments.append(None)
            continue
        values = (torch.full_like(divisors, bound) / divisors).float()
        set_tensor(graph_module, f"{key}.{side}", values.view(-1, *[1] * trailing))
        with graph_module.graph.inserting_before(clip.node):
            arguments.append(graph_module.graph.get_attr(f"{key}.{side}"))
    clip.node.target = aten.clamp.Tensor  # the node itself stays: sites go by its name
    clip.node.args = (clip.node.args[0], *arguments)
