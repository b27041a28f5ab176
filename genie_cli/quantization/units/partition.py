"""Reconstruction units: the parts of a network that are learned one by one.

A unit lies between two cut points. A block is found without knowing its class: it is a module that
holds at least two weight layers and whose nodes lie exactly between two cut points. Outside of blocks
there is one unit per weight layer, with the batch norm, activation and pooling behind it. Layers without
a cut point between them share a unit.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass

from torch import fx

from genie_cli.errors import InputError
from genie_cli.models.graph.cuts import cut_points, data_nodes
from genie_cli.models.graph.layers import weight_layers

MAX_CHAIN = 3
"""Most weight layers of a plain chain that is a block: a longer one (VGG's features) is cut at each layer."""
MAX_AROUND = 3
"""Most weight layers that a module adds to the block inside it, to be one block with it (squeeze-excitation)."""


@dataclass(frozen=True)
class Unit:
    """A part of the folded graph that is learned as one.

    Attributes:
        name: path of the block, or of the single layer.
        source: the node whose value enters.
        nodes: its nodes in data-flow order.
        layers: names of its weight layers in data-flow order.
    """

    name: str
    source: fx.Node
    nodes: tuple[fx.Node, ...]
    layers: tuple[str, ...]

    @property
    def output(self) -> fx.Node:
        """The node whose value leaves and is reconstructed."""
        return self.nodes[-1]


@dataclass(frozen=True)
class _Span:
    """Nodes first..last (indices into the data nodes) of one module."""

    name: str
    first: int
    last: int


def reconstruction_units(folded: fx.GraphModule, whole: bool = False) -> list[Unit]:
    """Units in data-flow order that cover every node once; one unit for the network if `whole`.

    Raises:
        InputError: the network has no layer to quantize.
    """
    nodes = data_nodes(folded)
    cuts = set(cut_points(folded))
    index = {node: i for i, node in enumerate(nodes)}
    layer_at = {index[layer.node]: layer.name for layer in weight_layers(folded)}
    if not layer_at:
        raise InputError("The network has no convolution or linear layer to quantize.")
    if whole:
        layers = tuple(layer_at[i] for i in sorted(layer_at))
        return [Unit("network", nodes[0], tuple(nodes[1:]), layers)]
    blocks = _blocks(nodes, cuts, sorted(layer_at))
    bounds: list[tuple[int, str | None]] = []  # (last node index, block name)
    position = 0
    for block in [*blocks, _Span("", len(nodes), len(nodes))]:
        bounds += [(end, None) for end in _single_layers(position + 1, block.first - 1, cuts, layer_at)]
        if bounds and bounds[-1][0] < block.first - 1:
            # nodes without weights, such as a pooling, belong to the unit before them
            bounds[-1] = (block.first - 1, bounds[-1][1])
        if block.first < len(nodes):
            bounds.append((block.last, block.name))
            position = block.last
    units, start = [], 0
    for end, name in bounds:
        layers = tuple(layer_at[i] for i in range(start + 1, end + 1) if i in layer_at)
        units.append(Unit(name or layers[0], nodes[start], tuple(nodes[start + 1 : end + 1]), layers))
        start = end
    return units


def _single_layers(first: int, last: int, cuts: set[int], layer_at: dict[int, str]) -> list[int]:
    """Ends of the units between two blocks: one per weight layer, each cut as late as possible."""
    inside = [i for i in range(first, last + 1) if i in layer_at]
    ends = []
    for this, following in itertools.pairwise(inside):
        between = [i for i in range(this, following) if i in cuts]
        if between:
            ends.append(between[-1])
    return [*ends, last] if inside else ends


def _blocks(nodes: list[fx.Node], cuts: set[int], layers: list[int]) -> list[_Span]:
    members: dict[str, list[int]] = defaultdict(list)
    for i, node in enumerate(nodes):
        for path in node.meta.get("modules", ()):
            members[path].append(i)
    spans = [_Span(path, indices[0], indices[-1]) for path, indices in members.items()]
    valid = []
    for span in spans:
        inside = [i for i in layers if span.first <= i <= span.last]
        contiguous = len(members[span.name]) == span.last - span.first + 1
        if len(inside) >= 2 and contiguous and span.first - 1 in cuts and span.last in cuts:
            valid.append(span)
    valid.sort(key=lambda span: (span.last - span.first, -len(span.name)))
    chosen: list[_Span] = []
    for span in valid:  # from the smallest to the largest
        within = [block for block in chosen if span.first <= block.first and block.last <= span.last]
        inside = [i for i in layers if span.first <= i <= span.last]
        if not within:
            if len(inside) <= MAX_CHAIN or not _is_chain(inside, cuts):
                chosen.append(span)
        elif len(within) == 1:
            held = sum(within[0].first <= i <= within[0].last for i in inside)
            if len(inside) - held <= MAX_AROUND:
                chosen[chosen.index(within[0])] = span
    return sorted(chosen, key=lambda span: span.first)


def _is_chain(layers: list[int], cuts: set[int]) -> bool:
    """True if there is a cut point between every two neighbouring weight layers."""
    return all(any(i in cuts for i in range(a, b)) for a, b in itertools.pairwise(layers))
