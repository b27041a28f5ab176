"""The batch-norm sites of a captured graph: synthesis reads them, folding removes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from genie_cli.models.graph.capture import aten
from genie_cli.models.graph.tensors import delete_tensor, get_tensor


@dataclass(frozen=True)
class BatchNormSite:
    """A batch norm in evaluation mode.

    Attributes:
        name: path of the layer: the running mean's key without its last part. A functional batch norm,
            whose running mean has another name, has the whole key.
        node: the node that computes it; its first argument is the normalised tensor.
        mean: running mean ``[C]``.
        var: running variance ``[C]``.
        weight: scale ``[C]`` (ones where the layer has none).
        bias: shift ``[C]`` (zeros where the layer has none).
        eps: added to the variance under the root.
    """

    name: str
    node: fx.Node
    mean: Tensor
    var: Tensor
    weight: Tensor
    bias: Tensor
    eps: float

    @property
    def source(self) -> fx.Node:
        """The node whose value is normalised."""
        source = self.node.args[0]
        assert isinstance(source, fx.Node)
        return source

    @property
    def keys(self) -> list[str]:
        """Keys of the tensors that this site owns."""
        return [str(arg.target) for arg in self.node.args[1:5] if isinstance(arg, fx.Node)]

    def affine(self) -> tuple[Tensor, Tensor]:
        """Multiplier and offset ``[C]`` (float64) of ``y = multiplier * x + offset``."""
        multiplier = self.weight.double() / torch.sqrt(self.var.double() + self.eps)
        return multiplier, self.bias.double() - self.mean.double() * multiplier


def is_untrained(graph_module: fx.GraphModule) -> bool:
    """True if there are batch norms, and all have the statistics that they start with: mean 0 and variance 1."""
    sites = batch_norm_sites(graph_module)
    return bool(sites) and all(not site.mean.any() and bool((site.var == 1).all()) for site in sites)


def batch_norm_sites(graph_module: fx.GraphModule) -> list[BatchNormSite]:
    """The batch norms in data-flow order; those without running statistics are left out."""
    sites: list[BatchNormSite] = []
    for node in graph_module.graph.nodes:
        if node.target is not aten.batch_norm.default:
            continue
        _, weight, bias, mean, var = node.args[:5]
        if not isinstance(mean, fx.Node) or not isinstance(var, fx.Node):
            continue
        key = str(mean.target)
        owner, _, leaf = key.rpartition(".")
        running_mean = get_tensor(graph_module, key)
        ones = torch.ones_like(running_mean)
        eps = node.args[7]
        assert isinstance(eps, float)
        sites.append(
            BatchNormSite(
                name=owner if owner and leaf == "running_mean" else key,
                node=node,
                mean=running_mean,
                var=get_tensor(graph_module, str(var.target)),
                weight=get_tensor(graph_module, str(weight.target)) if isinstance(weight, fx.Node) else ones,
                bias=get_tensor(graph_module, str(bias.target)) if isinstance(bias, fx.Node) else ones * 0,
                eps=eps,
            )
        )
    return sites


def remove_batch_norm(graph_module: fx.GraphModule, site: BatchNormSite) -> None:
    """Take a batch norm out of a graph, with the tensors that it owns: its readers read what was normalised."""
    keys = site.keys
    site.node.replace_all_uses_with(site.source)
    graph_module.graph.erase_node(site.node)
    graph_module.graph.eliminate_dead_code()
    for key in keys:
        delete_tensor(graph_module, key)
