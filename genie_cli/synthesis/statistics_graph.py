"""A teacher's graph rewritten for synthesis: batch norms become modules that also measure their statistics loss."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from genie_cli.errors import InputError
from genie_cli.models.graph.batch_norm import batch_norm_sites
from genie_cli.models.graph.capture import aten
from genie_cli.models.graph.cuts import data_nodes, output_nodes
from genie_cli.models.graph.layers import last_layer_of, weight_layers
from genie_cli.models.graph.pooling import with_repeatable_pooling
from genie_cli.models.graph.subgraph import extract
from genie_cli.models.graph.tensors import named_tensors, set_tensor
from genie_cli.models.logits import Logits
from genie_cli.synthesis.statistics import StatisticsSite


def statistics_graph(teacher: fx.GraphModule, dtype: torch.dtype, logits: Logits | None = None) -> fx.GraphModule:
    """The part of a teacher that the loss needs: images in, a tuple of one loss per batch-norm site out.

    Nothing behind the last site is run, unless `logits` are named. Then the graph returns (losses, logits,
    features), where the features are the input of their last weight layer. No parameter needs a gradient.
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
    ends = _logits_and_features(teacher, logits) if logits is not None else []
    graph_module = extract(teacher, nodes, nodes[:1], [*(site.node for site in sites), *ends])
    graph = graph_module.graph
    weights = {layer.weight_key for layer in weight_layers(graph_module)}
    for key, value in named_tensors(graph_module).items():
        set_tensor(graph_module, key, _prepared(value, dtype, key in weights))
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
    assert isinstance(returned, tuple) or not ends
    output.args = ((tuple(losses), *tuple(returned)[len(sites) :]) if ends else tuple(losses),)
    graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    _work_in_place(graph)
    return with_repeatable_pooling(graph_module)


def _logits_and_features(teacher: fx.GraphModule, logits: Logits) -> list[fx.Node]:
    scores = output_nodes(teacher)[logits.place]
    layer = last_layer_of(teacher, scores)
    assert layer is not None, "class scores behind a batch norm depend on a weight layer"
    return [scores, layer.sources[0]]


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


def _prepared(value: Tensor, dtype: torch.dtype, is_weight: bool) -> Tensor:
    """A tensor in the arithmetic of the step, converted once; a weight in its memory layout too.

    What else a network reads may have to lie as it does, such as pairs that are viewed as complex numbers.
    """
    value = value.to(dtype) if value.is_floating_point() else value
    return value.contiguous(memory_format=torch.channels_last) if is_weight and value.dim() == 4 else value


def _first(pair: tuple[Tensor, Tensor]) -> Tensor:
    return pair[0]


def _second(pair: tuple[Tensor, Tensor]) -> Tensor:
    return pair[1]
