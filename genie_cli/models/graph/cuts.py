"""Places of a captured graph: which values are needed behind each, and where one live tensor alone crosses."""

from __future__ import annotations

from torch import Tensor, fx


def data_nodes(graph_module: fx.GraphModule) -> list[fx.Node]:
    """The nodes that compute from the input, in order: neither parameters nor the output."""
    return [node for node in graph_module.graph.nodes if node.op not in ("get_attr", "output")]


def output_nodes(graph_module: fx.GraphModule) -> list[fx.Node]:
    """The nodes whose values the graph returns, in the order of the returned values."""
    returned = next(iter(reversed(graph_module.graph.nodes))).args[0]
    return [returned] if isinstance(returned, fx.Node) else list(returned)


def live_nodes(graph_module: fx.GraphModule) -> list[tuple[fx.Node, ...]]:
    """For each index i into `data_nodes`: the nodes up to i whose values are needed behind node i, in order.

    The values that the graph returns are needed until its end.
    """
    nodes = data_nodes(graph_module)
    last_use = _last_reads(nodes)
    for node in output_nodes(graph_module):
        last_use[node] = len(nodes)
    return _alive(nodes, last_use)


def cut_points(graph_module: fx.GraphModule) -> list[int]:
    """Indices i into `data_nodes` such that one tensor alone of the nodes up to i is still to be read by later nodes.

    Values that the graph returns and no later node reads do not count: they are finished. All that is needed behind
    a cut point has a row per image. The placeholder (index 0) and the last node are always among the cut points of a
    network whose outputs have a row per image.
    """
    nodes = data_nodes(graph_module)
    unread = _alive(nodes, _last_reads(nodes))
    crossing = crossing_places(graph_module)
    return [i for i in crossing if len(unread[i]) == 1 or i == len(nodes) - 1]


def crossing_places(graph_module: fx.GraphModule) -> list[int]:
    """Indices i into `data_nodes` such that all values needed behind node i are tensors with a row per image.

    Sizes, constants, and tensors whose first dimension is not the batch, such as patches of the images, cross no such
    place.
    """
    nodes = data_nodes(graph_module)
    can_cross = {node for node in nodes if _has_a_row_per_image(node, nodes[0])}
    return [i for i, alive in enumerate(live_nodes(graph_module)) if can_cross.issuperset(alive)]


def _last_reads(nodes: list[fx.Node]) -> dict[fx.Node, int]:
    """Of each node the index of the last one of `nodes` that reads it; its own where none does."""
    index = {node: i for i, node in enumerate(nodes)}
    return {node: max((index[user] for user in node.users if user in index), default=index[node]) for node in nodes}


def _alive(nodes: list[fx.Node], last_use: dict[fx.Node, int]) -> list[tuple[fx.Node, ...]]:
    """For each index i: the nodes up to i that are used behind it."""
    found = []
    alive: tuple[fx.Node, ...] = ()
    for i, node in enumerate(nodes):
        alive = tuple(own for own in (*alive, node) if last_use[own] > i)
        found.append(alive)
    return found


def _has_a_row_per_image(node: fx.Node, images: fx.Node) -> bool:
    """True if a node's value is a tensor whose first dimension is the batch, and not, say, patches of it."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.dim() or not value.is_floating_point():
        return False
    return bool(value.shape[0] == images.meta["val"].shape[0])
