"""A reconstruction unit cut out of the folded graph, and the parts of it that are learned together."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn

from genie_cli.models.graph.activation_functions import FUSED_WITH_LAYER
from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.subgraph import extract
from genie_cli.models.graph.tensors import key_owner, numel_per_image, stored_tensors
from genie_cli.quantization.units.partition import Unit
from genie_cli.student.bit_plan import ActivationSite, BitPlan
from genie_cli.student.build import insert_quantizers
from genie_cli.student.modules import IntegerWeight

_TENSOR_BYTES_CPU, _TENSOR_BYTES_GPU = 16 << 20, 512 << 20
_MOST_ROWS = 64


@dataclass(frozen=True)
class UnitGraph:
    """A stretch of the folded graph from some tensors to others.

    Attributes:
        name: what it is called; sets its random numbers apart.
        nodes: its nodes in data-flow order.
        sources: the nodes whose values enter.
        outputs: those of its nodes whose values leave and are reconstructed.
        teacher: these nodes as a graph of their own, from one tensor per source to one per output.
        bits: its share of the bits, with those of every site that its nodes read.
        read_before: names of its sites that an earlier unit reads, and so has learned.
        rows: images that pass through it at once where nothing is learned.
        slopes: name -> slopes that its nodes read, as integers.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    sources: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    teacher: fx.GraphModule
    bits: BitPlan
    read_before: frozenset[str]
    rows: int
    slopes: Mapping[str, IntegerWeight] = field(default_factory=dict)

    @property
    def own_sites(self) -> tuple[ActivationSite, ...]:
        """The sites that it is the first to read, whose step sizes it learns."""
        return tuple(site for site in self.bits.activations if site.name not in self.read_before)

    def student(self, weights: Mapping[str, nn.Module], activations: Mapping[str, nn.Module]) -> fx.GraphModule:
        """The unit with quantizers, see `insert_quantizers`; its slopes are rounded.

        An output that its nodes read too leaves before its quantizer, which the later units have again.
        """
        stored = {**self.slopes, **weights}
        return insert_quantizers(self.teacher, self.bits, stored, activations, read_outputs_leave_raw=True)


def cut_out(
    folded: fx.GraphModule,
    unit: Unit,
    bits: BitPlan,
    device: torch.device,
    slopes: Mapping[str, IntegerWeight] = {},
) -> UnitGraph:
    """The graph of one unit.

    A site belongs to the unit that is the first to read its tensor. The tensor is carried on as it is before the
    quantizer, so that later readers need the same quantizer again.

    Args:
        folded: the whole network.
        unit: where it is cut.
        bits: those of the whole network.
        device: where it will run.
        slopes: name -> slopes as integers, of the whole network; they are copied.
    """
    index, own = {node: i for i, node in enumerate(data_nodes(folded))}, set(unit.nodes)
    nodes = {node.name: node for node in index}
    sites, read_before = [], set()
    for site in bits.activations:
        node = nodes[site.node]
        readers = [reader for reader in node.users if reader in index]
        if own.isdisjoint(readers) and (readers or node not in own):
            continue  # an output of the network that no node reads is quantized by the unit that makes it
        sites.append(site)
        if readers and min(readers, key=index.__getitem__) not in own:
            read_before.add(site.name)
    own_bits = bits.part(unit.layers, sites)
    teacher = extract(folded, unit.nodes, unit.sources, unit.outputs)
    rows = rows_at_once([*unit.sources, *unit.nodes], device)
    names = [name for name in map(key_owner, stored_tensors(teacher)) if name in slopes]
    return UnitGraph(
        unit.name,
        unit.nodes,
        unit.sources,
        unit.outputs,
        teacher,
        own_bits,
        frozenset(read_before),
        rows,
        {name: copy.deepcopy(slopes[name]).to(device) for name in names},
    )


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
        teacher = extract(folded, nodes, unit.sources, [output])
        layers = {own.name for own in weight_layers(teacher)}
        read = {node.name for node in teacher.graph.nodes if any(reader.op != "output" for reader in node.users)}
        if all(reader.op == "output" for reader in output.users):
            read.add(output.name)  # of the network: a site on it is the unit's own
        sites = tuple(site for site in unit.bits.activations if site.node in read)
        bits = unit.bits.part([name for name in unit.bits.weights if name in layers], sites)
        yield replace(unit, name=layer.name, nodes=nodes, outputs=(output,), teacher=teacher, bits=bits)


def rows_at_once(nodes: Sequence[fx.Node], device: torch.device) -> int:
    """Images that pass through `nodes` together where nothing is learned: few, if their tensors are large.

    The result does not depend on it; tensors of bounded size keep the peak of memory low, and a CPU's cache warm.
    """
    largest = max(1, *(numel_per_image(node) for node in nodes)) * torch.float32.itemsize
    bound = _TENSOR_BYTES_CPU if device.type == "cpu" else _TENSOR_BYTES_GPU
    return max(1, min(_MOST_ROWS, bound // largest))
