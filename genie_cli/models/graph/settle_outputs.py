"""Bring the outputs of a captured graph into the normal form, with a tail for what has no row per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from genie_cli.errors import InputError
from genie_cli.models.graph.capture_failure import after_post_processing
from genie_cli.models.graph.operations import operation_of
from genie_cli.models.graph.output_layout import ANY_BATCH, NO_ROWS, Layout, differs, free_symbols, layout_of
from genie_cli.models.graph.output_names import leaf_names
from genie_cli.models.graph.outputs import Leaf, OutputTensor, OutputTree, Tail, keep_structure

aten = torch.ops.aten


def settle_outputs(graph_module: fx.GraphModule, leaves: Sequence[Any], spec: pytree.TreeSpec) -> None:
    """Bring the outputs of a graph into the normal form, and keep their structure in its ``meta``.

    Args:
        graph_module: its output node returns the nodes in `leaves`, in their order.
        leaves: what the network returns: nodes and plain values.
        spec: the tree of the leaves.

    Raises:
        InputError: nothing that it returns is computed from the images, or a shape depends on their values.
    """
    end = next(iter(reversed(graph_module.graph.nodes)))
    nodes = iter(end.args[0])
    settled = _Settled(graph_module)
    for name, leaf in zip(leaf_names(spec), leaves, strict=True):
        settled.add(name, next(nodes) if isinstance(leaf, fx.Node) else leaf)
    tail = settled.tail()
    if not any(leaf.layout is not None for leaf in settled.leaves) or not settled.kept:
        told = "; ".join(f"of '{name}' {reason}" for name, reason in settled.reasons.items()) or "it returns nothing"
        raise InputError(
            f"The network returns no tensor that is computed from the images and has a row for each of them: {told}. "
            "Let forward() return at least one, such as logits or a feature map."
        )
    end.args = (settled.kept[0] if len(settled.kept) == 1 else tuple(settled.kept),)
    found = tuple(settled.leaves), tuple(settled.tensors), tail, tuple(settled.notes)
    keep_structure(graph_module, OutputTree(spec, *found))


class _Settled:
    """The outputs of a graph, leaf by leaf.

    Attributes:
        leaves: what was added.
        kept: the nodes of the graph's outputs, in the normal form.
        tensors: what they are.
        reasons: leaf -> why it is no output of the graph.
        notes: see `OutputTree`.
    """

    def __init__(self, graph_module: fx.GraphModule) -> None:
        """Begin with nothing."""
        self._graph = graph_module.graph
        self._end = next(iter(reversed(self._graph.nodes)))
        self._images = next(node for node in self._graph.nodes if node.op == "placeholder")
        self._places: dict[fx.Node, int] = {}
        self._ends: list[fx.Node] = []
        self._behind: set[fx.Node] = set()
        self._entering: dict[fx.Node, int | None] = {}
        self.leaves: list[Leaf] = []
        self.kept: list[fx.Node] = []
        self.tensors: list[OutputTensor] = []
        self.reasons: dict[str, str] = {}
        self.notes: list[str] = []

    def add(self, name: str, leaf: Any) -> None:
        """Take a leaf, a node or a plain value.

        Raises:
            InputError: its shape depends on the values of the images.
        """
        if not isinstance(leaf, fx.Node):
            self.leaves.append(Leaf(name, value=leaf))
            self.reasons[name] = f"{leaf!r} is no tensor"
            if leaf is not None:
                self.notes.append(f"output '{name}' is no tensor: {leaf!r} is returned as it was captured.")
        elif leaf is self._images:
            self.leaves.append(Leaf(name, is_input=True))
            self.reasons[name] = "the images are returned"
        elif leaf.op == "get_attr":
            self.leaves.append(Leaf(name, key=str(leaf.target)))
            self.reasons[name] = "the value does not depend on the images"
            self.notes.append(f"output '{name}' does not depend on the images: it is returned as it is.")
        elif (reason := _unusable(leaf, self._images)) is None:
            layout = layout_of(leaf.meta["val"], self._images)
            self.leaves.append(Leaf(name, self._output(name, leaf, layout), layout))
        else:
            self._add_behind(name, leaf, reason)

    def tail(self) -> Tail | None:
        """The nodes behind the graph's outputs."""
        if not self._ends:
            return None
        graph = fx.Graph()
        copies = {node: graph.placeholder(node.name) for node in self._entering}
        for node in self._graph.nodes:
            if node in self._behind:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in self._ends))
        keys = dict.fromkeys(str(node.target) for node in self._behind if node.op == "get_attr")
        return Tail(graph, tuple(self._entering.values()), tuple(sorted(keys)))

    def _add_behind(self, name: str, leaf: fx.Node, reason: str) -> None:
        """Take a node that cannot be an output of the graph; what it is computed of becomes one."""
        self.reasons[name] = reason
        found: set[fx.Node] = set()
        entering: list[fx.Node] = []
        waiting = [leaf]
        while waiting:
            node = waiting.pop()
            if node in found or node in entering:
                continue
            if node is self._images or (node is not leaf and self._can_enter(node)):
                entering.append(node)
            else:
                found.add(node)
                waiting += node.all_input_nodes
        if any(operation_of(node) is not None or node.target is aten.batch_norm.default for node in found):
            self.leaves.append(Leaf(name))
            self.notes.append(f"output '{name}' is left out, None stands in its place: {reason}.")
            return
        for count, node in enumerate(entering):
            own = name if count == 0 else f"{name}.source{count}"
            place = None if node is self._images else self._output(own, node, Layout(node.meta["val"].dim()))
            self._entering[node] = place
        self._behind |= found
        layout = layout_of(leaf.meta["val"], self._images) if isinstance(leaf.meta.get("val"), Tensor) else NO_ROWS
        self.leaves.append(Leaf(name, layout=layout if layout.rows else None, in_tail=len(self._ends)))
        self._ends.append(leaf)
        self.notes.append(f"output '{name}' is computed behind the quantized network: {reason}.")

    def _output(self, name: str, node: fx.Node, layout: Layout) -> int:
        """The place of a node's value among the graph's outputs."""
        if node not in self._places:
            self._places[node] = len(self.kept)
            with self._graph.inserting_before(self._end):
                self.kept.append(_in_normal_form(self._graph, node, layout))
            shape = tuple(int(side) for side in self.kept[-1].meta["val"].shape[1:])
            self.tensors.append(OutputTensor(name, shape, layout))
        return self._places[node]

    def _can_enter(self, node: fx.Node) -> bool:
        """True if the tail can begin at a node: its value is in the normal form."""
        value = node.meta.get("val")
        if node.op == "get_attr" or not isinstance(value, Tensor) or _is_counted(value, self._images):
            return False
        if _unusable(node, self._images) is not None:
            return False
        return not differs(layout_of(node.meta["val"], self._images))


def _unusable(node: fx.Node, images: fx.Node) -> str | None:
    """The reason why a node's value is not an output of the graph; None where it is one.

    Raises:
        InputError: its shape depends on the values of the images.
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return "the value is no tensor"
    if _is_counted(value, images):
        raise InputError(after_post_processing("the shape of what it returns depends on what the images show"))
    if not value.is_floating_point():
        return f"the values are {str(value.dtype).removeprefix('torch.')}, which have no distance from others"
    layout = layout_of(value, images)
    if layout.rows == 0:
        sides = ", ".join(str(side) if isinstance(side, int) else ANY_BATCH for side in value.shape)
        return f"the shape [{sides}] has no row for each image"
    return None


def _is_counted(value: Tensor, images: fx.Node) -> bool:
    """True if a side of the shape is counted from values, and not the number of images."""
    return any(free_symbols(side) - free_symbols(images.meta["val"].shape[0]) for side in value.shape)


def _in_normal_form(graph: fx.Graph, node: fx.Node, layout: Layout) -> fx.Node:
    """The node, or one behind it whose value has a row per image and two dimensions or more."""
    value = node.meta["val"]
    target: Any
    argument: Any
    if layout.batch_dim:
        others = [dim for dim in range(value.dim()) if dim != layout.batch_dim]
        target, argument = aten.permute.default, [layout.batch_dim, *others]
    elif layout.rows > 1:
        target, argument = aten.reshape.default, [-1, layout.rows, *value.shape[1:]]
    elif value.dim() == 1:
        target, argument = aten.unsqueeze.default, 1
    else:
        return node
    following = graph.call_function(target, (node, argument))
    following.meta = {**node.meta, "val": layout.normal(value)}
    return following
