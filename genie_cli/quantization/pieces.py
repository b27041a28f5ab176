"""A unit cut out of the folded graph, and what of it is learned together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from genie_cli.models.graph.capture import aten
from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.subgraph import extract
from genie_cli.quantization.memory_budget import rows_at_once
from genie_cli.quantization.units import Unit
from genie_cli.student.protocol import BitPlan

_BEHIND = {
    aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default, aten.clamp.default,
    aten.clamp_.default, aten.leaky_relu.default, aten.silu.default, aten.hardswish.default, aten.sigmoid.default,
    aten.gelu.default, aten.batch_norm.default, aten.dropout.default,
}  # fmt: skip
"""Operations that are reconstructed together with the layer before them, where they are its only reader."""


@dataclass(frozen=True)
class Piece:
    """A stretch of the folded graph from one tensor to another.

    Attributes:
        name: what it is called; sets its random numbers apart.
        nodes: its nodes in data-flow order.
        source: the node whose value enters.
        output: the node whose value leaves.
        teacher: these nodes as a graph of their own.
        plan: its share of the bits.
        rows: images that pass through it at once where nothing is learned.
    """

    name: str
    nodes: list[fx.Node]
    source: fx.Node
    output: fx.Node
    teacher: fx.GraphModule
    plan: BitPlan
    rows: int


def cut_out(folded: fx.GraphModule, unit: Unit, plan: BitPlan, device: torch.device) -> Piece:
    """The piece of one unit."""
    all_nodes = data_nodes(folded)
    names = [node.name for node in all_nodes]
    first, last = names.index(unit.source), names.index(unit.output)
    nodes = all_nodes[first + 1 : last + 1]
    is_last = last == len(names) - 1  # whose output no unit reads: a site on it is the last unit's own
    read = set(names[first : last + is_last])
    rows = rows_at_once(all_nodes[first : last + 1], device)
    sites = tuple(site for site in plan.activations if site.node in read)
    own_plan = BitPlan({name: plan.weights[name] for name in unit.layers}, sites)
    teacher = extract(folded, nodes, all_nodes[first], [all_nodes[last]])
    return Piece(unit.name, nodes, all_nodes[first], all_nodes[last], teacher, own_plan, rows)


def layer_by_layer(folded: fx.GraphModule, piece: Piece) -> Iterator[Piece]:
    """Pieces that end at one weight layer after the other, each starting where `piece` starts.

    Inside a residual block no cut is free of the skip connection, so that the earlier layers are run too.
    """
    inside = set(piece.nodes)
    for layer in weight_layers(folded):
        if layer.node not in inside:
            continue
        output = layer.node
        while len(output.users) == 1 and (reader := next(iter(output.users))).target in _BEHIND and reader in inside:
            output = reader
        nodes = piece.nodes[: piece.nodes.index(output) + 1]
        teacher = extract(folded, nodes, piece.source, [output])
        layers = {own.name for own in weight_layers(teacher)}
        kept = {node.name for node in teacher.graph.nodes if node.op != "output"}
        is_end = output is piece.output
        sites = tuple(
            site for site in piece.plan.activations if site.node in kept and (is_end or site.node != output.name)
        )
        weights = {name: bits for name, bits in piece.plan.weights.items() if name in layers}
        yield Piece(layer.name, nodes, piece.source, output, teacher, BitPlan(weights, sites), piece.rows)
