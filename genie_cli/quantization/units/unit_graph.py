"""A reconstruction unit cut out of the folded graph, and the parts of it that are learned together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from genie_cli.models.graph.activation_functions import FUSED_WITH_LAYER
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.subgraph import extract
from genie_cli.models.graph.tensors import numel_per_image
from genie_cli.quantization.units.partition import Unit
from genie_cli.student.protocol import BitPlan

_TENSOR_BYTES_CPU, _TENSOR_BYTES_GPU = 16 << 20, 512 << 20
_MOST_ROWS = 64


@dataclass(frozen=True)
class UnitGraph:
    """A stretch of the folded graph from one tensor to another.

    Attributes:
        name: what it is called; sets its random numbers apart.
        nodes: its nodes in data-flow order; the value of the last one leaves.
        source: the node whose value enters.
        teacher: these nodes as a graph of their own.
        bits: its share of the bits.
        rows: images that pass through it at once where nothing is learned.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    source: fx.Node
    teacher: fx.GraphModule
    bits: BitPlan
    rows: int

    @property
    def output(self) -> fx.Node:
        """The node whose value leaves and is reconstructed."""
        return self.nodes[-1]


def cut_out(folded: fx.GraphModule, unit: Unit, bits: BitPlan, device: torch.device) -> UnitGraph:
    """The graph of one unit.

    Args:
        folded: the whole network.
        unit: where it is cut.
        bits: those of the whole network.
        device: where it will run.
    """
    # the network's output is read by no unit: a site on it is the last unit's own
    is_last = all(reader.op == "output" for reader in unit.output.users)
    read = {unit.source.name, *(node.name for node in unit.nodes if is_last or node is not unit.output)}
    sites = tuple(site for site in bits.activations if site.node in read)
    own_bits = BitPlan({name: bits.weights[name] for name in unit.layers}, sites)
    teacher = extract(folded, unit.nodes, unit.source, [unit.output])
    rows = rows_at_once([unit.source, *unit.nodes], device)
    return UnitGraph(unit.name, unit.nodes, unit.source, teacher, own_bits, rows)


def layer_by_layer(folded: fx.GraphModule, unit: UnitGraph) -> Iterator[UnitGraph]:
    """Parts of a unit that end at one weight layer after the other, each starting where the unit starts.

    Inside a residual block no cut is free of the skip connection, so that the earlier layers are run too.
    """
    inside = set(unit.nodes)
    for layer in weight_layers(folded):
        if layer.node not in inside:
            continue
        output = layer.node
        while (
            len(output.users) == 1
            and (reader := next(iter(output.users))).target in FUSED_WITH_LAYER
            and reader in inside
        ):
            output = reader
        nodes = unit.nodes[: unit.nodes.index(output) + 1]
        teacher = extract(folded, nodes, unit.source, [output])
        layers = {own.name for own in weight_layers(teacher)}
        kept = {node.name for node in teacher.graph.nodes if node.op != "output"}
        is_end = output is unit.output
        sites = tuple(
            site for site in unit.bits.activations if site.node in kept and (is_end or site.node != output.name)
        )
        weights = {name: bits for name, bits in unit.bits.weights.items() if name in layers}
        yield UnitGraph(layer.name, nodes, unit.source, teacher, BitPlan(weights, sites), unit.rows)


def rows_at_once(nodes: Sequence[fx.Node], device: torch.device) -> int:
    """Images that pass through `nodes` together where nothing is learned: few, if their tensors are large.

    The result does not depend on it; tensors of bounded size keep the peak of memory low, and a CPU's cache warm.
    """
    largest = max(1, *(numel_per_image(node) for node in nodes)) * torch.float32.itemsize
    bound = _TENSOR_BYTES_CPU if device.type == "cpu" else _TENSOR_BYTES_GPU
    return max(1, min(_MOST_ROWS, bound // largest))
