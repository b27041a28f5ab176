"""Fold batch norms into the convolution or linear layer before them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from genie_cli.errors import InputError
from genie_cli.models.graph.batch_norm import BatchNormSite, batch_norm_sites
from genie_cli.models.graph.layers import WeightLayer, weight_layers
from genie_cli.models.graph.tensors import delete_tensor, get_tensor, named_tensors, set_tensor


@dataclass(frozen=True)
class FoldedGraph:
    """A captured graph whose batch norms were folded where they can be.

    Attributes:
        graph: the new graph module; the given one is left as it was.
        multipliers: a layer with a folded batch norm -> ``[O]``, folded weight / checkpoint weight.
        unfolded: batch norms that stay in the graph -> the reason.
    """

    graph: fx.GraphModule
    multipliers: dict[str, Tensor]
    unfolded: dict[str, str]


def fold_batch_norms(graph_module: fx.GraphModule) -> FoldedGraph:
    """Fold each batch norm that is the only reader of a weight layer: ``w' = k w, b' = k b + c``.

    The products are taken in float64 and stored in the weight's dtype.

    Raises:
        InputError: a folded weight is not finite (broken running statistics).
    """
    folded = copy.deepcopy(graph_module)
    layers = {layer.node: layer for layer in weight_layers(folded)}
    multipliers: dict[str, Tensor] = {}
    unfolded: dict[str, str] = {}
    for site in batch_norm_sites(folded):
        layer = layers.get(site.source)
        if layer is None:
            unfolded[site.name] = f"it follows {_describe(site.source)}, not a convolution or linear layer"
        elif len(site.source.users) > 1:
            unfolded[site.name] = f"{layer.name} has {len(site.source.users)} readers"
        else:
            multipliers[layer.name] = _fold(folded, site, layer)
    folded.graph.eliminate_dead_code()
    folded.graph.lint()
    folded.recompile()
    return FoldedGraph(folded, multipliers, unfolded)


def _fold(graph_module: fx.GraphModule, site: BatchNormSite, layer: WeightLayer) -> Tensor:
    multiplier, offset = site.affine()
    weight = get_tensor(graph_module, layer.weight_key)
    new_weight = (weight.double() * multiplier.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
    bias = get_tensor(graph_module, layer.bias_key).double() if layer.bias_key else torch.zeros_like(offset)
    new_bias = (bias * multiplier + offset).to(weight.dtype)
    if not (torch.isfinite(new_weight).all() and torch.isfinite(new_bias).all()):
        raise InputError(f"Batch norm '{site.name}' cannot be folded: its statistics give values that are not finite.")
    bias_key = layer.bias_key or _free_bias_key(graph_module, layer)
    set_tensor(graph_module, layer.weight_key, new_weight)
    set_tensor(graph_module, bias_key, new_bias)
    if layer.bias_key is None:
        with graph_module.graph.inserting_before(layer.node):
            bias_node = graph_module.graph.get_attr(bias_key)
        layer.node.args = (*layer.node.args[:2], bias_node, *layer.node.args[3:])
    keys = site.keys
    site.node.replace_all_uses_with(layer.node)
    graph_module.graph.erase_node(site.node)
    graph_module.graph.eliminate_dead_code()
    for key in keys:
        delete_tensor(graph_module, key)
    return multiplier.float()


def _free_bias_key(graph_module: fx.GraphModule, layer: WeightLayer) -> str:
    """A free key for a bias that the layer did not have: beside its weight, and never that of another tensor."""
    owner, _, leaf = layer.weight_key.rpartition(".")
    key = f"{owner}.bias" if owner and leaf == "weight" else f"{layer.weight_key}_bias"
    taken = named_tensors(graph_module)
    while key in taken:
        key += "_folded"
    return key


def _describe(node: fx.Node) -> str:
    return "the input" if node.op == "placeholder" else getattr(node.target, "__name__", str(node.target)).split(".")[0]
