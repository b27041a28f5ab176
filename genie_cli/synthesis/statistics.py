"""The batch-norm statistics loss (paper Eq. 5), one pass each way over each normalised tensor.

For a site with running mean mu, deviation sigma = sqrt(var + 1e-6), C channels and N values per
channel, with the batch's mean m and unbiased deviation s:

    loss = ( sum_c (m - mu)^2 + sum_c (s - sigma)^2 ) / C
    d loss / dx = 2/C * [ (m - mu) / N + (s - sigma) (x - m) / ((N - 1) s) ]

The gradient is affine in x per channel, and so is the batch norm itself, so the backward pass is
two per-channel affine maps and needs no more memory than x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from genie_cli.errors import InputError
from genie_cli.models.graph.batch_norm import BatchNormSite, batch_norm_sites
from genie_cli.models.graph.capture import aten
from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.pooling import repeat_max_pool_gradients
from genie_cli.models.graph.subgraph import extract
from genie_cli.models.graph.tensors import named_tensors, set_tensor

VARIANCE_EPS = 1e-6
"""Added to the running variance in the target; the layers' own eps is not used (authors' constant)."""
_TINY = 1e-12


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance ``[C]`` (float32) of ``x [B, C, ...]`` over all but the channels."""
    if x.device.type == "cpu":
        # the training kernel of batch norm, because torch.var_mean is ten times slower on a CPU
        zeros = torch.zeros(x.shape[1])
        mean, var = torch.ops.aten.batch_norm_update_stats(x, zeros, zeros.clone(), 0.0)
        return mean.float(), var.float()
    dims = [0, *range(2, x.dim())]
    var, mean = torch.var_mean(x.float(), dims, correction=0)
    return mean, var


def _affine(x: Tensor, multiplier: Tensor, offset: Tensor) -> Tensor:
    """``multiplier * x + offset`` per channel, in the dtype of x, computed by batch norm's fused kernel."""
    return torch.batch_norm(
        x, multiplier, offset, torch.zeros_like(offset), torch.ones_like(offset), False, 0.0, 0.0, False
    )


class _SiteFunction(torch.autograd.Function):
    """``(y, loss)`` of a batch norm in evaluation mode and its statistics loss."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, multiplier: Tensor, offset: Tensor, target_mean: Tensor, target_std: Tensor, needs_y: bool
    ) -> tuple[Tensor, Tensor]:
        mean, var = channel_statistics(x)
        channels, count = len(mean), x.numel() // len(mean)
        std = (var * (count / max(count - 1, 1))).clamp(min=_TINY).sqrt()
        mean_gap, std_gap = mean - target_mean, std - target_std
        slope = 2 / channels * std_gap / (max(count - 1, 1) * std)
        shift = 2 / channels * mean_gap / count - slope * mean
        ctx.save_for_backward(x, slope, shift, multiplier)
        loss = (mean_gap.square().sum() + std_gap.square().sum()) / channels
        y = _affine(x, multiplier, offset) if needs_y else x.new_empty(0)
        return y, loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, slope, shift, multiplier = ctx.saved_tensors
        grad_y, grad_loss = grads
        grad = _affine(x, slope * grad_loss, shift * grad_loss)
        if grad_y is not None and grad_y.numel():
            grad += _affine(grad_y, multiplier, torch.zeros_like(multiplier))
        return grad, None, None, None, None, None


class StatisticsSite(nn.Module):
    """A batch norm that also measures the distance of its input from its running statistics."""

    multiplier: Tensor
    offset: Tensor
    target_mean: Tensor
    target_std: Tensor

    def __init__(self, site: BatchNormSite, needs_y: bool) -> None:
        """Copy the statistics of `site`; `needs_y` is True if another node reads the normalised value."""
        super().__init__()
        multiplier, offset = site.affine()
        self.needs_y = needs_y
        self.register_buffer("multiplier", multiplier.float())
        self.register_buffer("offset", offset.float())
        self.register_buffer("target_mean", site.mean.float())
        self.register_buffer("target_std", (site.var.float() + VARIANCE_EPS).sqrt())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x [B, C, ...]`` to the normalised value and the loss (float32 scalar)."""
        result: tuple[Tensor, Tensor] = _SiteFunction.apply(
            x, self.multiplier, self.offset, self.target_mean, self.target_std, self.needs_y
        )
        return result


def statistics_graph(teacher: fx.GraphModule, dtype: torch.dtype, with_logits: bool = False) -> fx.GraphModule:
    """The part of a teacher that the loss needs: images in, a tuple of one loss per batch-norm site out.

    Nothing behind the last site is run, unless `with_logits` is set. Then the graph returns (losses, logits,
    features), where the features are the input of the last weight layer. No parameter needs a gradient.
    Weights are in `dtype`; statistics and losses stay float32.

    Raises:
        InputError: a network without batch norms has no statistics to synthesize from.
    """
    sites = batch_norm_sites(teacher)
    if not sites:
        raise InputError(
            "This network has no batch-norm layers with running statistics, and images are synthesized from "
            "these: quantize it with images made for another teacher, or with real ones."
        )
    nodes = data_nodes(teacher)
    ends = _logits_and_features(teacher) if with_logits else []
    graph_module = extract(teacher, nodes, nodes[0], [*(site.node for site in sites), *ends])
    graph = graph_module.graph
    for key, value in named_tensors(graph_module).items():
        set_tensor(graph_module, key, _prepared(value, dtype))
    losses = []
    own_sites = batch_norm_sites(graph_module)
    for index, (site, original) in enumerate(zip(own_sites, sites, strict=True)):
        target = f"statistics_sites.{index}"
        readers = [user for user in site.node.users if user.op != "output"]
        graph_module.add_submodule(target, StatisticsSite(original, needs_y=bool(readers)))
        with graph.inserting_before(site.node):
            both = graph.call_module(target, (site.source,))
            normalized = graph.call_function(_first, (both,))
            normalized.meta = dict(site.node.meta)
            losses.append(graph.call_function(_second, (both,)))
        site.node.replace_all_uses_with(normalized)
        graph.erase_node(site.node)
    output = next(iter(reversed(graph.nodes)))
    returned = output.args[0]
    assert isinstance(returned, tuple) or not with_logits
    output.args = ((tuple(losses), *tuple(returned)[len(sites) :]) if with_logits else tuple(losses),)
    graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    _work_in_place(graph)
    return repeat_max_pool_gradients(graph_module)


def _logits_and_features(teacher: fx.GraphModule) -> list[fx.Node]:
    logits = next(iter(reversed(teacher.graph.nodes))).args[0]
    features = weight_layers(teacher)[-1].node.args[0]
    assert isinstance(logits, fx.Node) and isinstance(features, fx.Node)
    return [logits, features]


def _work_in_place(graph: fx.Graph) -> None:
    """Let a sum or a ReLU overwrite a normalised tensor that nothing else reads, which saves new memory.

    No backward pass needs the overwritten value: a site keeps its input, a sum nothing, a ReLU its result.
    """
    overwritable = {_first, aten.add.Tensor, aten.add_.Tensor}
    for node in graph.nodes:
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node) or first.target not in overwritable or len(first.users) > 1:
            continue
        if node.target is aten.relu.default:
            node.target = aten.relu_.default
        elif node.target is aten.add.Tensor and not node.kwargs and isinstance(node.args[1], fx.Node):
            shapes = [argument.meta["val"].shape for argument in node.args if "val" in argument.meta]
            if len(shapes) == 2 and shapes[0] == shapes[1]:
                node.target = aten.add_.Tensor


def _prepared(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights in the arithmetic and the memory layout of the step, converted once."""
    value = value.to(dtype) if value.is_floating_point() else value
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def _first(pair: tuple[Tensor, Tensor]) -> Tensor:
    return pair[0]


def _second(pair: tuple[Tensor, Tensor]) -> Tensor:
    return pair[1]


def image_statistics_loss(images: Tensor) -> Tensor:
    """Squared differences of each image's channel means from 0 and stds from 1, summed and divided by B.

    Args:
        images: ``[B, C, H, W]`` in normalised space, float32.
    """
    pixels = images.flatten(2)
    mean = pixels.mean(2, keepdim=True)
    var = (pixels - mean).square().sum(2) / (pixels.shape[2] - 1)
    std = var.clamp(min=_TINY).sqrt()
    return (mean.square().sum() + (std - 1).square().sum()) / len(images)
