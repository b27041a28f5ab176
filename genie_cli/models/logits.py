"""The class scores among a network's outputs: what accuracy, cross-entropy and KL divergence are taken of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from genie_cli.errors import UsageError, unknown_name
from genie_cli.models.graph.cuts import data_nodes, output_nodes
from genie_cli.models.graph.outputs import OutputTensor, OutputTree
from genie_cli.models.graph.subgraph import extract

USUAL = "logits"
"""The name by which the class scores are known where other outputs have their shape too."""


@dataclass(frozen=True)
class Logits:
    """The output that holds a score for each class.

    Attributes:
        name: of the output.
        place: among the graph's outputs.
        num_classes: number of scores per image; 1: a binary network.
    """

    name: str
    place: int
    num_classes: int

    def of(self, graph_module: fx.GraphModule) -> fx.GraphModule:
        """The part of a graph that computes them: images ``[B, C, H, W]`` to logits ``[B, num_classes]``."""
        outputs = output_nodes(graph_module)
        if len(outputs) == 1:
            return graph_module
        nodes = data_nodes(graph_module)
        return extract(graph_module, nodes, nodes[:1], [outputs[self.place]]).train(graph_module.training)


def find_logits(outputs: OutputTree, name: str | None = None) -> Logits | None:
    """The class scores: the output called `name`, else the only one of a shape ``[B, K]`` or ``[B]``.

    Where several have such a shape, it is the one called ``logits``.

    Raises:
        UsageError: no output is called `name`, or it has another shape.
    """
    places = {place: tensor for place, tensor in enumerate(outputs.tensors) if _can_be_scores(tensor)}
    if name is not None:
        place = named_place(outputs, name)
        if place not in places:
            raise UsageError(
                f"--logits {name}: output {outputs.tensors[place].described()} holds no class scores, which have the "
                f"shape [B, classes]: {_listed(list(places.values()))}."
            )
    elif len(places) == 1:
        (place,) = places
    else:
        usual = [place for place, tensor in places.items() if tensor.name == USUAL]
        if not usual:
            return None
        place = usual[0]
    return Logits(name or outputs.tensors[place].name, place, outputs.tensors[place].shape[0])


def named_place(outputs: OutputTree, name: str) -> int:
    """The place of an output among those of the graph, by any of its names.

    Raises:
        UsageError: no output has this name.
    """
    places = {leaf.name: leaf.place for leaf in outputs.leaves if leaf.place is not None}
    if name not in places:
        raise unknown_name("output", name, places, f" of the network, which returns {_listed(outputs.tensors)}")
    return places[name]


def why_no_logits(outputs: OutputTree) -> str:
    """The reason why `find_logits` found none, and the fix, as a sentence."""
    able = [tensor for tensor in outputs.tensors if _can_be_scores(tensor)]
    if able:
        return f"several outputs could hold the class scores: name one with --logits, of {_listed(able)}"
    return f"no output of the network holds class scores [B, classes]: it returns {_listed(outputs.tensors)}"


def _can_be_scores(tensor: OutputTensor) -> bool:
    return len(tensor.shape) == 1 and tensor.layout.rows == 1


def _listed(tensors: tuple[OutputTensor, ...] | list[OutputTensor]) -> str:
    return ", ".join(tensor.described() for tensor in tensors) or "none does"
