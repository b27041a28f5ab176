"""Stable names of a network's tensors, which files know activation sites by."""

from __future__ import annotations

from collections import Counter

from torch import fx

from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.layers import weight_layers


def tensor_names(folded: fx.GraphModule) -> dict[str, fx.Node]:
    """Every tensor that some node reads, by its stable name: that of its first reader in data-flow order.

    ``layer1.0.conv1.input`` where a weight layer reads it first, else the operation, numbered within
    its module, and the side: ``layer1.0.add0.lhs``. The network's output, which no node reads, is named after
    its producer: ``fc.output``. Exporters' node names do not enter.
    """
    layer_of = {layer.node: layer.name for layer in weight_layers(folded)}
    nodes = data_nodes(folded)
    position = {node: i for i, node in enumerate(nodes)}
    counts: Counter[str] = Counter()
    names: dict[str, fx.Node] = {}
    reader_names: dict[fx.Node, str] = {}
    for node in nodes:
        scope = (node.meta.get("modules") or ("",))[-1]
        key = f"{scope}.{getattr(node.target, '__name__', 'op').split('.')[0]}".lstrip(".")
        reader_names[node] = layer_of.get(node, f"{key}{counts[key]}")
        counts[key] += node not in layer_of
    for node in nodes:
        readers = [user for user in node.users if user in position]
        if not readers:
            if any(user.op == "output" for user in node.users):
                names[f"{reader_names[node]}.output"] = node
            continue
        first = min(readers, key=position.__getitem__)
        inputs = [arg for arg in first.all_input_nodes if arg in position]
        side = "input" if len(inputs) < 2 else ("lhs" if inputs[0] is node else "rhs" if len(inputs) == 2 else "")
        name = f"{reader_names[first]}.{side or f'input{inputs.index(node)}'}"
        names[name] = node
    return names
