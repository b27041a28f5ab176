"""Batch norms of a folded graph: taken in by the layer before them, else by the layers behind, else affine maps."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from genie_cli.errors import InputError
from genie_cli.models.graph.affine_map import replace_batch_norm
from genie_cli.models.graph.batch_norm import BatchNormSite, batch_norm_sites, remove_batch_norm
from genie_cli.models.graph.equivalence import Reference
from genie_cli.models.graph.layers import WeightLayer, output_axis, set_bias, weight_layers
from genie_cli.models.graph.moving import move_into_readers, operation_name, readers_of
from genie_cli.models.graph.tensors import get_tensor, set_tensor


@dataclass(frozen=True)
class FoldedGraph:
    """A captured graph whose batch norms were folded where they can be.

    Attributes:
        graph: the new graph module; the given one is left as it was.
        multipliers: a layer with a folded batch norm -> ``[O]``, folded weight / checkpoint weight. Layers that took in
            one before them have none: one number per row no longer leads from the checkpoint's weight to theirs.
        unfolded: batch norms that stay, each as an affine map in float -> the reason.
        error: distance of the new graph's answers from the module's own; None: not compared.
        moved: batch norms that moved into the layers behind them -> the names of these.
    """

    graph: fx.GraphModule
    multipliers: dict[str, Tensor]
    unfolded: dict[str, str]
    error: float | None = None
    moved: dict[str, tuple[str, ...]] = field(default_factory=dict)


def fold_batch_norms(
    graph_module: fx.GraphModule,
    reference: Reference | None = None,
    keep: Collection[str] = (),
    as_affine_maps: bool = True,
) -> FoldedGraph:
    """Fold each batch norm that is the only reader of a weight layer: ``w' = k w, b' = k b + c``.

    The others move into the layers that read them where that is exact (`moving`), or become affine maps. Products are
    taken in float64 and stored in the weight's dtype.

    Args:
        graph_module: the captured graph.
        reference: the module's own answers. A fold that moves the graph's answers from them is undone and named.
        keep: names of batch norms that stay, as where a stored network is put together again.
        as_affine_maps: False: batch norms that stay keep their four statistics, as in networks that were stored so.

    Raises:
        InputError: a folded weight is not finite (broken running statistics).
    """
    reasons = dict.fromkeys(keep, "it was kept when the network was quantized")
    folded = _fold_all(graph_module, reasons)
    error = None
    if reference is not None:
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
    if as_affine_maps and folded.unfolded:
        for site in batch_norm_sites(folded.graph):
            replace_batch_norm(folded.graph, site)
        _finish(folded.graph)
        error = None if reference is None else reference.distance(folded.graph)
    return replace(folded, error=error)


def _fold_all(graph_module: fx.GraphModule, keep: Mapping[str, str]) -> FoldedGraph:
    """Fold and move what can be, but for the batch norms in `keep` (name -> reason)."""
    folded = copy.deepcopy(graph_module)
    layers = {layer.node: layer for layer in weight_layers(folded)}
    multipliers: dict[str, Tensor] = {}
    unfolded: dict[str, str] = {}
    for site in batch_norm_sites(folded):
        layer = layers.get(site.source)
        if site.name in keep:
            unfolded[site.name] = keep[site.name]
        elif layer is None:
            unfolded[site.name] = f"it follows {operation_name(site.source)}, not a layer with a weight"
        elif len(site.source.users) > 1:
            unfolded[site.name] = f"{layer.name} has {len(site.source.users)} readers"
        elif output_axis(folded, layer) != 1 or layer.operation.bias is None:
            unfolded[site.name] = f"its channels are not the output channels of {layer.name}"
        else:
            multipliers[layer.name] = _fold(folded, site, layer)
    moved = _move_all(folded, unfolded, keep)
    _finish(folded)
    took_in = {name for names in moved.values() for name in names}
    multipliers = {name: multiplier for name, multiplier in multipliers.items() if name not in took_in}
    return FoldedGraph(folded, multipliers, unfolded, moved=moved)


def _move_all(folded: fx.GraphModule, unfolded: dict[str, str], keep: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Move batch norms forward and take them out of `unfolded`; the reason of each other says why it does not move."""
    moved: dict[str, tuple[str, ...]] = {}
    for site in reversed(batch_norm_sites(folded)):  # the last first: it may stand between another one and a layer
        if site.name in keep:
            continue
        readers = readers_of(folded, site, {layer.node: layer for layer in weight_layers(folded)})
        if isinstance(readers, str):
            unfolded[site.name] += f", and {readers}"
            continue
        move_into_readers(folded, site, readers)
        del unfolded[site.name]
        moved[site.name] = tuple(reader.layer.name for reader in readers)
    return moved


def _finish(folded: fx.GraphModule) -> None:
    folded.graph.eliminate_dead_code()
    folded.graph.lint()
    folded.recompile()


def _fold(graph_module: fx.GraphModule, site: BatchNormSite, layer: WeightLayer) -> Tensor:
    multiplier, offset = site.affine()
    weight = get_tensor(graph_module, layer.weight_key)
    new_weight = (weight.double() * multiplier.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
    bias = get_tensor(graph_module, layer.bias_key).double() if layer.bias_key else torch.zeros_like(offset)
    new_bias = (bias * multiplier + offset).to(weight.dtype)
    if not (torch.isfinite(new_weight).all() and torch.isfinite(new_bias).all()):
        raise InputError(f"Batch norm '{site.name}' cannot be folded: its statistics give values that are not finite.")
    set_tensor(graph_module, layer.weight_key, new_weight)
    set_bias(graph_module, layer, new_bias)
    remove_batch_norm(graph_module, site)
    return multiplier.float()
