"""Means, variances and ranges of activations from the batch norms' parameters, without a single image.

M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019
(arXiv 1906.04721). Behind a batch norm, channel c is assumed normal with mean beta_c and standard
deviation gamma_c. ReLU and ReLU6 make it a clipped normal (section 4.2.1, appendix C). The range of an
activation is beta +- n gamma over its channels with n = 6 (section 5). Summed activations are assumed
independent, and pooling is assumed to keep mean and variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from genie_cli.data.pixel_prior import PixelPrior
from genie_cli.models.graph.batch_norm import BatchNormSite, batch_norm_sites
from genie_cli.models.graph.capture import aten
from genie_cli.models.graph.channels import follow_channels, zero_padding
from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.equalization import channel_bounds
from genie_cli.models.graph.folding import FoldedGraph
from genie_cli.models.graph.integer_operations import clip_bounds
from genie_cli.models.graph.layers import output_axis, weight_layers
from genie_cli.models.graph.tensors import get_tensor

NUM_SIGMAS = 6.0
"""Standard deviations between a batch norm's mean and the ends of its range."""


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of a tensor per channel: ``[C]`` float64 each.

    Attributes:
        mean: expected value.
        var: variance.
        low: lower end of the range.
        high: upper end of the range.
    """

    mean: Tensor
    var: Tensor
    low: Tensor
    high: Tensor

    def __truediv__(self, scale: Tensor) -> ChannelStatistics:
        """The statistics of the tensor divided by a positive ``scale [C]``."""
        return ChannelStatistics(self.mean / scale, self.var / scale.square(), self.low / scale, self.high / scale)

    def each(self, function: Callable[[Tensor], Tensor]) -> ChannelStatistics:
        """The statistics of the tensor whose channels `function` moves."""
        return ChannelStatistics(*(function(values) for values in (self.mean, self.var, self.low, self.high)))

    @property
    def range(self) -> tuple[float, float]:
        """Least and largest value over all channels."""
        return float(self.low.amin()), float(self.high.amax())


@dataclass(frozen=True)
class ActivationStatistics:
    """Statistics of a tensor and the axis of its channels."""

    channels: ChannelStatistics
    axis: int


def normal(mean: Tensor, std: Tensor) -> ChannelStatistics:
    """One normal distribution per channel, its range `NUM_SIGMAS` standard deviations to each side."""
    mean, std = mean.detach().double(), std.detach().double()
    return ChannelStatistics(mean, std.square(), mean - NUM_SIGMAS * std, mean + NUM_SIGMAS * std)


def batch_norm_outputs(graph_module: fx.GraphModule) -> dict[str, ChannelStatistics]:
    """Weight layer -> output statistics of the batch norm behind it, for the batch norms that folding removes.

    Args:
        graph_module: the captured graph, not yet folded.
    """
    layers = {layer.node: layer.name for layer in weight_layers(graph_module)}
    return {
        layers[site.source]: _behind_batch_norm(site)
        for site in batch_norm_sites(graph_module)
        if site.source in layers and len(site.source.users) == 1
    }


def batch_norm_tensors(
    graph_module: fx.GraphModule, folded: FoldedGraph, scales: Mapping[str, Tensor]
) -> dict[str, ChannelStatistics]:
    """Node name in a folded graph -> what a batch norm that no layer before it took in says of the node's value.

    Behind a batch norm that stays, its output; before one that moved into the layers behind it, its input, whose mean
    and variance it has measured.

    Args:
        graph_module: the captured graph, not yet folded.
        folded: the folded graph, equalized or not.
        scales: layer -> ``[O]``, the divisors of its output; empty if it is not equalized.
    """
    nodes = {node.name: node for node in folded.graph.graph.nodes}
    layers = {layer.node: layer.name for layer in weight_layers(folded.graph)}
    found = {}
    for site in batch_norm_sites(graph_module):
        if site.name in folded.unfolded:
            found[site.node.name] = _behind_batch_norm(site)
        elif site.name in folded.moved and site.source.name in nodes:
            scale = _divisors(nodes[site.source.name], len(site.mean), layers, scales)
            found[site.source.name] = normal(site.mean, site.var.double().sqrt()) / scale
    return found


def _divisors(node: fx.Node, num_channels: int, layers: Mapping[fx.Node, str], scales: Mapping[str, Tensor]) -> Tensor:
    """Divisors ``[C]`` of a node's value, which are those of the layer that it follows."""
    while node not in layers:
        sources = [source for source in node.all_input_nodes if source.op != "get_attr"]  # slopes and bounds apart
        if len(sources) != 1:
            break
        node = sources[0]
    scale = scales.get(layers.get(node, ""), torch.ones(1, dtype=torch.float64))
    return scale.repeat_interleave(num_channels // len(scale))


def activation_statistics(
    folded: fx.GraphModule,
    outputs: Mapping[str, ChannelStatistics],
    images: PixelPrior,
    tensors: Mapping[str, ChannelStatistics] = {},
) -> dict[str, ActivationStatistics]:
    """Statistics of every tensor of a folded graph for which they are known, by node name.

    Args:
        folded: the folded graph, equalized or not.
        outputs: weight layer -> statistics of its output, in the scale that it has in `folded`.
        images: mean and std of the network's input, which is assumed normal.
        tensors: node name -> statistics that are known of its value, its channels along axis 1.

    Returns:
        Node name -> statistics. Nodes behind a layer without batch norm, or behind an unknown operation,
        are left out.
    """
    layers = {layer.node: layer for layer in weight_layers(folded)}
    found: dict[fx.Node, ActivationStatistics] = {}
    for node in data_nodes(folded):
        statistics: ActivationStatistics | None = None
        if node.name in tensors:
            statistics = ActivationStatistics(tensors[node.name], 1)
        elif node.op == "placeholder":
            mean, std = (torch.tensor(values, dtype=torch.float64) for values in (images.mean, images.std))
            statistics = ActivationStatistics(normal(mean, std), 1)
        elif node in layers:
            axis = output_axis(folded, layers[node])
            channels = outputs.get(layers[node].name)
            if axis is not None and channels is not None:
                statistics = ActivationStatistics(channels, axis)
        else:
            statistics = _behind_operation(folded, node, found)
        if statistics is not None:
            found[node] = statistics
    return {node.name: statistics for node, statistics in found.items()}


def clip(x: ChannelStatistics, low: Tensor, high: Tensor) -> ChannelStatistics:
    """The statistics of ``clamp(x, low, high)`` for a normal x: the clipped normal distribution (appendix C).

    With y = x - mean, a and b the bounds of y, and phi and Phi of a / std and b / std:

        E[y]   = a Phi(a) + b (1 - Phi(b)) + std (phi(a) - phi(b))
        E[y^2] = a^2 Phi(a) + b^2 (1 - Phi(b)) + var (Phi(b) - Phi(a)) + std (a phi(a) - b phi(b))

    A channel whose range lies within the bounds does not change, since x may not be normal.

    Args:
        x: statistics of the clip's input.
        low: lower bounds, broadcast over ``[C]``; -inf for none.
        high: upper bounds; inf for none.
    """
    low, high = low.double().expand_as(x.mean), high.double().expand_as(x.mean)
    std = x.var.sqrt().clamp(min=1e-150)  # the distribution function of a constant becomes a step
    first, second = torch.zeros_like(std), torch.zeros_like(std)
    between = torch.ones_like(std)
    for bound, sign in ((low, 1.0), (high, -1.0)):
        a = torch.where(bound.isfinite(), bound - x.mean, torch.zeros_like(std))
        beyond = torch.where(bound.isfinite(), _normal_cdf(sign * a / std), torch.zeros_like(std))
        density = torch.where(bound.isfinite(), _normal_pdf(a / std), torch.zeros_like(std))
        first = first + a * beyond + sign * std * density
        second = second + a.square() * beyond + sign * std * a * density
        between = between - beyond
    second = second + x.var * between
    clipped = ChannelStatistics(
        mean=x.mean + first,
        var=(second - first.square()).clamp(min=0),
        low=x.low.clamp(low, high),
        high=x.high.clamp(low, high),
    )
    return _where((x.low >= low) & (x.high <= high), x, clipped)


def leaky(x: ChannelStatistics, slope: Tensor) -> ChannelStatistics:
    """The statistics of ``max(x, 0) + slope * min(x, 0)`` for a normal x.

    Args:
        x: statistics of the input.
        slope: broadcast over ``[C]``; at least 0, so that the ends of the range stay its ends.
    """
    slope = slope.double().expand_as(x.mean)
    positive = clip(x, torch.zeros(()), torch.full((), math.inf))
    mean = slope * x.mean + (1 - slope) * positive.mean
    # x = p + n with p n = 0, so E[n^2] = E[x^2] - E[p^2], E[n] = E[x] - E[p] and cov(p, n) = -E[p] E[n]
    negative_mean = x.mean - positive.mean
    negative_var = x.var - positive.var + 2 * positive.mean * negative_mean
    var = positive.var + slope.square() * negative_var - 2 * slope * positive.mean * negative_mean
    ends = [torch.where(end > 0, end, slope * end) for end in (x.low, x.high)]
    bent = ChannelStatistics(mean, var.clamp(min=0), *ends)
    return _where(x.low >= 0, x, bent)


def add(x: ChannelStatistics, y: ChannelStatistics) -> ChannelStatistics:
    """The statistics of a sum of independent tensors: means and variances add up.

    The squared distances between the mean and each end of the range add up too. For two normal tensors
    this is `NUM_SIGMAS` standard deviations of the sum; for skew ones the two sides stay different.
    """
    mean = x.mean + y.mean
    below = torch.hypot(x.mean - x.low, y.mean - y.low)
    above = torch.hypot(x.high - x.mean, y.high - y.mean)
    return ChannelStatistics(mean, x.var + y.var, mean - below, mean + above)


def _behind_batch_norm(site: BatchNormSite) -> ChannelStatistics:
    # |gamma|, corrected for eps: where the variance is below eps, the output varies less
    shrunk = site.var.double() / (site.var.double() + site.eps)
    return normal(site.bias, site.weight.double().abs() * shrunk.sqrt())


def _behind_operation(
    graph_module: fx.GraphModule, node: fx.Node, found: Mapping[fx.Node, ActivationStatistics]
) -> ActivationStatistics | None:
    if node.target is aten.cat.default:
        return _behind_cat(node, found)
    source = node.args[0] if node.args else None
    x = found.get(source) if isinstance(source, fx.Node) else None
    if x is None:
        return None
    moved = _moved(node, x)
    if moved is not None:
        return moved
    channels = _sum(node, x, found) if node.target is aten.add.Tensor else _bent(graph_module, node, x)
    return None if channels is None else ActivationStatistics(channels, x.axis)


def _moved(node: fx.Node, x: ActivationStatistics) -> ActivationStatistics | None:
    """The statistics behind an operation that moves, pools, pads or drops values."""
    followed, padding = follow_channels(node, x.axis), zero_padding(node)
    if followed is not None:
        axis, repeats = followed
        moved = x.channels.each(lambda values: values.repeat_interleave(repeats))
        if padding:  # borders count for the range but not for the mean, as in convolutions that pad
            moved = replace(moved, low=moved.low.clamp(max=0), high=moved.high.clamp(min=0))
        return ActivationStatistics(moved, axis)
    if padding:
        added = padding.pop(x.axis)
        padded = ActivationStatistics(x.channels.each(lambda values: F.pad(values, added)), x.axis)
        return padded if not padding else None
    if node.target is aten.slice.Tensor:
        bounds: list[Any] = [*node.args[2:], *(None, None, None)[len(node.args) - 2 :]]
        if all(bound is None or isinstance(bound, int) for bound in bounds):
            return ActivationStatistics(x.channels.each(lambda values: values[slice(*bounds)]), x.axis)
    return None


def _bent(graph_module: fx.GraphModule, node: fx.Node, x: ActivationStatistics) -> ChannelStatistics | None:
    """The statistics behind an elementwise operation of one tensor."""
    ends = clip_bounds(node)
    if ends is not None:
        low, high = ends
        return clip(
            x.channels,
            torch.tensor(-math.inf if low is None else low, dtype=torch.float64),
            torch.tensor(math.inf if high is None else high, dtype=torch.float64),
        )
    if node.target is aten.clamp.Tensor:
        bounds = channel_bounds(graph_module, node)
        return None if bounds is None else clip(x.channels, *bounds)
    if node.target is aten.leaky_relu.default:
        slope = torch.tensor(node.args[1] if len(node.args) > 1 else 0.01, dtype=torch.float64)
    elif node.target is aten.prelu.default and isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr":
        slope = get_tensor(graph_module, str(node.args[1].target)).detach()
        if slope.numel() > 1 and x.axis != 1:
            return None  # it has one slope per entry of axis 1
    else:
        return None
    return leaky(x.channels, slope) if bool((slope >= 0).all()) else None


def _sum(
    node: fx.Node, x: ActivationStatistics, found: Mapping[fx.Node, ActivationStatistics]
) -> ChannelStatistics | None:
    other = node.args[1]
    y = found.get(other) if isinstance(other, fx.Node) else None
    if y is None or node.kwargs or x.axis != y.axis or len(x.channels.mean) != len(y.channels.mean):
        return None
    dims = {argument.meta["val"].dim() for argument in node.all_input_nodes}
    return add(x.channels, y.channels) if len(dims) == 1 and len(node.all_input_nodes) == 2 else None


def _behind_cat(node: fx.Node, found: Mapping[fx.Node, ActivationStatistics]) -> ActivationStatistics | None:
    parts = node.args[0]
    assert isinstance(parts, list | tuple)
    known = [found[part] for part in parts if isinstance(part, fx.Node) and part in found]
    dim = node.args[1] if len(node.args) > 1 else 0
    assert isinstance(dim, int)
    if len(known) != len(parts) or {part.axis for part in known} != {dim % node.meta["val"].dim()}:
        return None
    columns = zip(*((c.mean, c.var, c.low, c.high) for c in (part.channels for part in known)), strict=True)
    return ActivationStatistics(ChannelStatistics(*(torch.cat(values) for values in columns)), known[0].axis)


def _where(keep: Tensor, x: ChannelStatistics, y: ChannelStatistics) -> ChannelStatistics:
    pairs = ((x.mean, y.mean), (x.var, y.var), (x.low, y.low), (x.high, y.high))
    return ChannelStatistics(*(torch.where(keep, a, b) for a, b in pairs))


def _normal_cdf(x: Tensor) -> Tensor:
    cdf: Tensor = torch.special.ndtr(x)
    return cdf


def _normal_pdf(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
