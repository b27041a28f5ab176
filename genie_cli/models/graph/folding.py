"""Fold batch norms into the convolution or linear layer before them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from genie_cli.errors import InputError
from genie_cli.models.graph.batch_norm import BatchNormSite, batch_norm_sites
from genie_cli.models.graph.equivalence import Reference
from genie_cli.models.graph.layers import WeightLayer, output_axis, weight_layers
from genie_cli.models.graph.tensors import delete_tensor, get_tensor, named_tensors, set_tensor


@dataclass(frozen=True)
class FoldedGraph:
    """A captured graph whose batch norms were folded where they can be.

    Attributes:
        graph: the new graph module; the given one is left as it was.
        multipliers: a layer with a folded batch norm -> ``[O]``, folded weight / checkpoint weight.
        unfolded: batch norms that stay in the graph -> the reason.
        error: distance of the new graph's answers from the module's own; None: not compared.
    """

    graph: fx.GraphModule
    multipliers: dict[str, Tensor]
    unfolded: dict[str, str]
    error: float | None = None


def fold_batch_norms(
    graph_module: fx.GraphModule, reference: Reference | None = None, keep: Collection[str] = ()
) -> FoldedGraph:
    """Fold each batch norm that is the only reader of a weight layer: ``w' = k w, b' = k b + c``.

    The products are taken in float64 and stored in the weight's dtype.

    Args:
        graph_module: the captured graph.
        reference: the module's own answers. A fold that moves the graph's answers from them is undone and named.
        keep: names of batch norms that stay, as where a stored network is put together again.

    Raises:
        InputError: a folded weight is not finite (broken running statistics).
    """
    reasons = dict.fromkeys(keep, "it was kept when the network was quantized")
    folded = _fold_all(graph_module, reasons)
    if reference is None:
        return folded
    error = reference.distance(folded.graph)
    if not reference.holds(error):
        sites = [site.name for site in batch_norm_sites(graph_module) if site.name not in folded.unfolded]
        for name in sites:
            others = {other: "" for other in sites if other != name}
            distance = reference.distance(_fold_all(graph_module, {**reasons, **others}).graph)
            if not reference.holds(distance):
                reasons[name] = f"folding it moves the network's output by {distance:.2g} of its size"
        folded = _fold_all(graph_module, reasons)
        error = reference.distance(folded.graph)
    return replace(folded, error=error)


def _fold_all(graph_module: fx.GraphModule, keep: Mapping[str, str]) -> FoldedGraph:
    """Fold what can be, but for the batch norms in `keep` (name -> reason)."""
    folded = copy.deepcopy(graph_module)
    layers = {layer.node: layer for layer in weight_layers(folded)}
    multipliers: dict[str, Tensor] = {}
    unfolded: dict[str, str] = {}
    for site in batch_norm_sites(folded):
        layer = layers.get(site.source)
        if site.name in keep:
            unfolded[site.name] = keep[site.name]
        elif layer is None:
            unfolded[site.name] = f"it follows {_describe(site.source)}, not a layer with a weight"
        elif len(site.source.users) > 1:
            unfolded[site.name] = f"{layer.name} has {len(site.source.users)} readers"
        elif output_axis(folded, layer) != 1 or layer.operation.bias is None:
            unfolded[site.name] = f"its channels are not the output channels of {layer.name}"
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
        layer.read_bias_from(bias_node)
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
