"""The outputs of a network: a tree of tensors, which a captured graph computes as a flat tuple in a normal form.

The graph's output node holds the tensors that are computed from the images: one node, or a tuple where there are
several, each once. In the normal form such a tensor is floating and has a row per image, ``[B, ...]`` of two dimensions
or more. What is returned besides (decided classes, a sum over the batch, a size) is computed of these by a `Tail`. How
the network returns all that (dictionaries, tuples, names, other layouts) is an `OutputTree` in the graph's ``meta``;
`structured` puts it on again.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from genie_cli.errors import InputError
from genie_cli.models.graph.cuts import output_nodes
from genie_cli.models.graph.operations import operation_of
from genie_cli.models.graph.tensors import get_tensor, set_tensor

BARE = "output"
"""The name of the output of a network that returns a tensor and nothing around it."""
_KEY = "outputs"
_STRUCTURE = "output_structure"
_ANY_BATCH = "B"

aten = torch.ops.aten


@dataclass(frozen=True)
class Layout:
    """The layout of a tensor as the network returns it.

    Attributes:
        num_dims: number of its dimensions.
        batch_dim: the one that is the batch.
        rows: entries of that dimension per image, image by image: 4 of a ``[4 B, C]``.
    """

    num_dims: int
    batch_dim: int = 0
    rows: int = 1

    def normal(self, returned: Tensor) -> Tensor:
        """The tensor in the normal form; as it is where it does not have this layout."""
        if returned.dim() != self.num_dims or returned.shape[self.batch_dim] % self.rows:
            return returned
        value = returned.movedim(self.batch_dim, 0) if self.batch_dim else returned
        if self.rows > 1:
            value = value.unflatten(0, (value.shape[0] // self.rows, self.rows))
        return value.unsqueeze(1) if value.dim() == 1 else value

    def returned(self, normal: Tensor) -> Tensor:
        """Undo `normal`."""
        value = normal
        if self.num_dims == 1 and self.rows == 1:
            value = value.squeeze(1)
        if self.rows > 1:
            value = value.flatten(0, 1)
        return value.movedim(0, self.batch_dim) if self.batch_dim else value

    def described(self, shape: Sequence[int]) -> str:
        """The shape as the network returns it, ``[B, 10]``, of ``shape`` per image in the normal form."""
        sides = [*map(str, shape)]
        if self.rows > 1:
            sides = [f"{self.rows}*{_ANY_BATCH}", *sides[1:]]
        else:
            sides.insert(self.batch_dim, _ANY_BATCH)
        return f"[{', '.join(sides[: self.num_dims])}]"


@dataclass(frozen=True)
class Leaf:
    """A leaf of what a network returns.

    Attributes:
        name: its path in the tree, ``head.cls`` or ``0``.
        place: among the outputs of the graph; None: the graph does not compute it.
        layout: of what is returned, where that has a row per image.
        in_tail: its place among the values of the tail, where that computes it.
        key: of a tensor of the graph that does not depend on the images.
        value: what is returned in all other cases, such as a number.
        is_input: the images themselves are returned.
    """

    name: str
    place: int | None = None
    layout: Layout | None = None
    in_tail: int | None = None
    key: str | None = None
    value: Any = None
    is_input: bool = False


@dataclass(frozen=True)
class OutputTensor:
    """An output of the graph.

    Attributes:
        name: of the first leaf that it is returned as, or that the tail computes of it.
        shape: of one image's row in the normal form.
        layout: of that leaf; the normal form's own for the tail.
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout

    def described(self) -> str:
        """Name and shape: ``classes [B, 80, 22, 22]``."""
        return f"{self.name} {self.layout.described(self.shape)}"


@dataclass(frozen=True)
class Tail:
    """The nodes that compute, of the graph's outputs, what else is returned: nothing in it is quantized.

    Attributes:
        graph: its placeholders are the outputs of `places`; it returns a tuple.
        places: among the outputs of the graph; None: the images.
        keys: of the graph's tensors that it reads.
    """

    graph: fx.Graph
    places: tuple[int | None, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class OutputTree:
    """The structure of what a network returns.

    Attributes:
        spec: the tree.
        leaves: its leaves, in their order.
        tensors: the graph's outputs, in their order.
        tail: computes what is returned besides; None: nothing is.
        notes: what the user should know of leaves that are no outputs of the graph.
    """

    spec: pytree.TreeSpec
    leaves: tuple[Leaf, ...]
    tensors: tuple[OutputTensor, ...]
    tail: Tail | None = None
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the graph's outputs."""
        return tuple(tensor.name for tensor in self.tensors)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the graph's tensors that are returned as they are, and of those that the tail reads."""
        return (*self.constants, *(self.tail.keys if self.tail is not None else ()))

    @property
    def constants(self) -> tuple[str, ...]:
        """The keys of the graph's tensors that are returned as they are."""
        return tuple(leaf.key for leaf in self.leaves if leaf.key is not None)

    @property
    def is_plain(self) -> bool:
        """True if the network returns what the graph does: one tensor in the normal form."""
        if self.spec != _LEAF:
            return False
        (leaf,) = self.leaves
        return leaf.place is not None and leaf.layout is not None and not _differs(leaf.layout)

    def flat(self, returned: Any) -> tuple[Tensor, ...]:
        """The tensors with a row per image among what the network has returned, in the normal form; else nothing."""
        leaves, spec = pytree.tree_flatten(returned)
        if spec != self.spec:
            return ()
        pairs = zip(self.leaves, leaves, strict=True)
        return tuple(leaf.layout.normal(value) for leaf, value in pairs if leaf.layout is not None)

    def put_on(
        self, images: Tensor, computed: Sequence[Tensor], constants: Sequence[Tensor], others: Sequence[Any]
    ) -> Any:
        """The tree that the network returns.

        Args:
            images: the images.
            computed: the graph's outputs.
            constants: the tensors of `constants`.
            others: the values of the tail.
        """
        by_key = iter(constants)
        leaves = []
        for leaf in self.leaves:
            if leaf.place is not None and leaf.layout is not None:
                leaves.append(leaf.layout.returned(computed[leaf.place]))
            elif leaf.in_tail is not None:
                leaves.append(others[leaf.in_tail])
            elif leaf.key is not None:
                leaves.append(next(by_key))
            else:
                leaves.append(images if leaf.is_input else leaf.value)
        return pytree.tree_unflatten(leaves, self.spec)


def outputs_of(graph_module: fx.GraphModule) -> OutputTree:
    """The structure of what a captured network returns."""
    tree = graph_module.meta[_KEY]
    assert isinstance(tree, OutputTree)
    return tree


def returned_keys(graph_module: fx.GraphModule) -> tuple[str, ...]:
    """The keys of tensors that a captured graph does not read, and that the network returns."""
    tree = graph_module.meta.get(_KEY)
    return tree.keys if tree is not None else ()


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs of a graph, which returns a single one without a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def named_outputs(returned: Any) -> list[tuple[str, Tensor]]:
    """The names and tensors of what a network has returned, in the order of the tree."""
    leaves, spec = pytree.tree_flatten(returned)
    named = zip(leaf_names(spec), leaves, strict=True)
    return [(name, value) for name, value in named if isinstance(value, Tensor)]


def copy_structure(graph_module: fx.GraphModule, target: fx.GraphModule) -> None:
    """Let `target`, which computes the outputs of `graph_module`, know how they are returned.

    Nothing is done where `graph_module` is a part of a captured graph, which does not know it.
    """
    if _KEY in graph_module.meta:
        target.meta[_KEY] = graph_module.meta[_KEY]
    for key in returned_keys(graph_module):
        set_tensor(target, key, get_tensor(graph_module, key))


def structured(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A graph that returns what the network returns; it shares the tensors of `graph_module`."""
    tree = outputs_of(graph_module)
    if tree.is_plain:
        return graph_module
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(graph_module.graph, copies)
    images = next(node for node in graph_module.graph.nodes if node.op == "placeholder")
    computed = [copies[node] for node in output_nodes(graph_module)]
    constants = [graph.get_attr(key) for key in tree.constants]
    others: list[Any] = []
    if tree.tail is not None:
        entering = [copies[images] if place is None else computed[place] for place in tree.tail.places]
        nodes = list(tree.tail.graph.nodes)
        values = dict(zip((node for node in nodes if node.op == "placeholder"), entering, strict=True))
        for node in nodes:
            if node.op == "output":
                others = [values[value] for value in node.args[0]]
            elif node.op != "placeholder":
                values[node] = graph.node_copy(node, values.__getitem__)
    graph_module.add_submodule(_STRUCTURE, OutputStructure(tree))
    graph.output(graph.call_module(_STRUCTURE, (copies[images], *computed, *constants, *others)))
    whole = fx.GraphModule(graph_module, graph)
    graph_module.delete_submodule(_STRUCTURE)
    return whole.train(graph_module.training)


class OutputStructure(nn.Module):
    """The end of a network: the tensors of the graph become what the network returns."""

    def __init__(self, tree: OutputTree) -> None:
        """Put on the structure `tree`."""
        super().__init__()
        self._tree = tree

    def forward(self, images: Tensor, *values: Any) -> Any:
        """The images, the graph's outputs, its constants and the tail's values to the tree."""
        end = len(self._tree.tensors)
        behind = end + len(self._tree.constants)
        return self._tree.put_on(images, values[:end], values[end:behind], values[behind:])


def leaf_names(spec: pytree.TreeSpec) -> list[str]:
    """The paths of a tree's leaves, joined by dots; `BARE` for a tree that is one leaf."""
    if spec == _LEAF:
        return [BARE]
    return [".".join(path) for path in _paths(spec)]


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
    graph_module.meta[_KEY] = OutputTree(spec, *found)


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
            layout = _layout(leaf.meta["val"], self._images)
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
        layout = _layout(leaf.meta["val"], self._images) if isinstance(leaf.meta.get("val"), Tensor) else _NO_ROWS
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
        if node.op == "get_attr" or _unusable(node, self._images) is not None:
            return False
        return not _differs(_layout(node.meta["val"], self._images))


_LEAF = pytree.tree_flatten(0)[1]
_NO_ROWS = Layout(0, 0, 0)


def _differs(layout: Layout) -> bool:
    return layout.batch_dim != 0 or layout.rows != 1 or layout.num_dims == 1


def _paths(spec: pytree.TreeSpec) -> list[tuple[str, ...]]:
    if spec == _LEAF:
        return [()]
    return [
        (key, *path) for key, child in zip(_child_names(spec), _children(spec), strict=True) for path in _paths(child)
    ]


def _children(spec: pytree.TreeSpec) -> Sequence[pytree.TreeSpec]:
    return [spec.child(i) for i in range(spec.num_children)]


def _child_names(spec: pytree.TreeSpec) -> list[str]:
    """Keys of a mapping, names of fields, else numbers."""
    context: Any = spec.context
    if spec.type is defaultdict:
        context = context[1]
    elif isinstance(context, type) and hasattr(context, "_fields"):  # a named tuple
        context = context._fields
    elif spec.type not in (dict, OrderedDict) and dataclasses.is_dataclass(spec.type):
        context = next((each for each in (context, *context) if _names_all(each, spec)), None)
    return [str(key) for key in context] if _names_all(context, spec) else [str(i) for i in range(spec.num_children)]


def _names_all(context: Any, spec: pytree.TreeSpec) -> bool:
    is_listed = isinstance(context, Sequence | Mapping) and not isinstance(context, str)
    return is_listed and len(context) == spec.num_children and all(isinstance(key, str | int) for key in context)


def _unusable(node: fx.Node, images: fx.Node) -> str | None:
    """The reason why a node's value is not an output of the graph; None where it is one.

    Raises:
        InputError: its shape depends on the values of the images.
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return "the value is no tensor"
    if any(_free_symbols(side) - _free_symbols(images.meta["val"].shape[0]) for side in value.shape):
        raise InputError(after_post_processing("the shape of what it returns depends on what the images show"))
    if not value.is_floating_point():
        return f"the values are {str(value.dtype).removeprefix('torch.')}, which have no distance from others"
    layout = _layout(value, images)
    if layout.rows == 0:
        sides = ", ".join(str(side) if isinstance(side, int) else _ANY_BATCH for side in value.shape)
        return f"the shape [{sides}] has no row for each image"
    return None


def after_post_processing(reason: str) -> str:
    """The message for a network that does its post-processing in forward()."""
    return (
        f"The network cannot be captured: {reason}, as behind non-maximum suppression or a threshold on scores. Give "
        "genie the part before that: a factory whose forward() returns the raw maps (scores and boxes of all places), "
        "such as a small module around the network's backbone and heads. Apply the post-processing to what "
        "genie_cli.load returns."
    )


def _layout(value: Tensor, images: fx.Node) -> Layout:
    """The layout of a traced value; 0 rows where no dimension is the batch."""
    batch = images.meta["val"].shape[0]
    for dim, side in enumerate(value.shape):
        others = [other for place, other in enumerate(value.shape) if place != dim]
        if any(_free_symbols(other) for other in others):
            continue
        multiple = _multiple(side, batch)
        if multiple == 1 or (multiple > 1 and dim == 0):
            return Layout(value.dim(), dim, multiple)
    return Layout(value.dim(), 0, 0)


def _multiple(side: Any, batch: Any) -> int:
    """The number of times that the batch is contained in a side; 0 where it is not."""
    if not isinstance(side, torch.SymInt) or not isinstance(batch, torch.SymInt):
        return 0
    quotient = side.node.expr / batch.node.expr
    return int(quotient) if quotient.is_Integer and quotient > 0 else 0


def _free_symbols(side: Any) -> set[Any]:
    return set(side.node.expr.free_symbols) if isinstance(side, torch.SymInt) else set()


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
