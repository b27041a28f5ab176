"""Cut points: places of a captured graph where exactly one live tensor crosses."""

from __future__ import annotations

from torch import Tensor, fx


def data_nodes(graph_module: fx.GraphModule) -> list[fx.Node]:
    """The nodes that compute from the input, in order: neither parameters nor the output."""
    return [node for node in graph_module.graph.nodes if node.op not in ("get_attr", "output")]


def output_nodes(graph_module: fx.GraphModule) -> list[fx.Node]:
    """The nodes whose values the graph returns, in the order of the returned values."""
    returned = next(iter(reversed(graph_module.graph.nodes))).args[0]
    return [returned] if isinstance(returned, fx.Node) else list(returned)


def cut_points(graph_module: fx.GraphModule) -> list[int]:
    """Indices i into `data_nodes` such that after node i only node i's value is still needed, a row per image.

    The placeholder (index 0) and the last node are always among them.
    """
    nodes = data_nodes(graph_module)
    index = {node: i for i, node in enumerate(nodes)}
    last_use = list(range(len(nodes)))
    for node in nodes:
        readers = [index[user] for user in node.users if user in index]
        is_output = any(user.op == "output" for user in node.users)
        last_use[index[node]] = len(nodes) if is_output else max(readers, default=index[node])
    cuts: list[int] = []
    alive: set[int] = set()
    for i, node in enumerate(nodes):
        alive = {j for j in alive if last_use[j] > i} | ({i} if last_use[i] > i else set())
        if alive == {i} and _has_a_row_per_image(node, nodes[0]):
            cuts.append(i)
    return cuts


def _has_a_row_per_image(node: fx.Node, images: fx.Node) -> bool:
    """True if a node's value is a tensor whose first dimension is the batch, and not, say, patches of it."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.dim():
        return False
    return bool(value.shape[0] == images.meta["val"].shape[0])
