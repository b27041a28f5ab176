"""A subgraph of a captured graph as a graph module of its own, sharing its tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from genie_cli.models.graph.tensors import get_tensor, set_tensor


def extract(
    graph_module: fx.GraphModule, nodes: Sequence[fx.Node], sources: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> fx.GraphModule:
    """The graph that computes `outputs` from the values of `sources` by `nodes`.

    Args:
        graph_module: the captured graph.
        nodes: the nodes to run, in order, of which those are left out that no output needs; parameters that they read
            come along, without a copy.
        sources: the nodes whose values become the inputs, in this order.
        outputs: the nodes whose values are returned: one tensor, or a tuple for several.
    """
    graph, root = fx.Graph(), nn.Module()
    copies: dict[fx.Node, fx.Node] = {}
    for source in sources:
        copies[source] = graph.placeholder(source.name)
        copies[source].meta = dict(source.meta)
    needed = set(outputs)
    for node in reversed(nodes):
        if node in needed and node not in sources:
            needed.update(node.all_input_nodes)
    for node in nodes:
        if node not in needed:
            continue
        for argument in node.all_input_nodes:
            if argument.op == "get_attr" and argument not in copies:
                set_tensor(root, str(argument.target), get_tensor(graph_module, str(argument.target)))
                copies[argument] = graph.node_copy(argument)
        if node.op == "call_module":
            target = str(node.target)
            _add_module(root, target, graph_module.get_submodule(target))
        if node not in sources:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    results = tuple(copies[node] for node in outputs)
    graph.output(results[0] if len(results) == 1 else results)
    return fx.GraphModule(root, graph)


def _add_module(root: nn.Module, target: str, module: nn.Module) -> None:
    *path, leaf = target.split(".")
    for name in path:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(leaf, module)
