"""The outputs of a network: a tree of tensors, which a captured graph computes as a flat tuple in a normal form.

The graph's output node holds the tensors that are computed from the images: one node, or a tuple where there are
several, each once. In the normal form such a tensor is floating and has a row per image, ``[B, ...]`` of two dimensions
or more. What is returned besides (decided classes, a sum over the batch, a size) is computed of these by a `Tail`. How
the network returns all that (dictionaries, tuples, names, other layouts) is an `OutputTree` in the graph's ``meta``;
`structured` puts it on again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from genie_cli.models.graph.cuts import output_nodes
from genie_cli.models.graph.output_layout import Layout, differs
from genie_cli.models.graph.output_names import LEAF, leaf_names
from genie_cli.models.graph.tensors import get_tensor, named_tensors, set_tensor

_KEY = "outputs"
_STRUCTURE = "output_structure"


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
        if self.spec != LEAF:
            return False
        (leaf,) = self.leaves
        return leaf.place is not None and leaf.layout is not None and not differs(leaf.layout)

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


def keep_structure(graph_module: fx.GraphModule, tree: OutputTree) -> None:
    """Let a captured graph know how its outputs are returned."""
    graph_module.meta[_KEY] = tree


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
        device = next((tensor.device for tensor in named_tensors(graph_module).values()), None)
        entering = [copies[images] if place is None else computed[place] for place in tree.tail.places]
        nodes = list(tree.tail.graph.nodes)
        values = dict(zip((node for node in nodes if node.op == "placeholder"), entering, strict=True))
        for node in nodes:
            if node.op == "output":
                others = [values[value] for value in node.args[0]]
            elif node.op != "placeholder":
                values[node] = graph.node_copy(node, values.__getitem__)
                if node.kwargs.get("device") is not None:  # the graph may have been moved since
                    values[node].kwargs = {**values[node].kwargs, "device": device}
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
