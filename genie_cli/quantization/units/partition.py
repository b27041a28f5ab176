"""Reconstruction units: where a network is cut into pieces that are learned one by one.

A unit lies between two cut points. Blocks are found without knowing their class: a module that
holds at least two weight layers and whose nodes lie exactly between two cut points. What no block
holds becomes one unit a weight layer, with the batch norm, activation and pooling behind it; where
no cut point lies between two layers, they share a unit.
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
"""A module of more weight layers in a plain chain (VGG's features) is no block: each layer can be cut off."""
MAX_AROUND = 3
"""A module with a block inside is one block with it if it adds at most so many layers (squeeze-excitation)."""


@dataclass(frozen=True)
class Unit:
    """A piece of the folded graph, learned as one.

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
    """Units in data-flow order that cover every node once; one for everything if `whole`.

    Raises:
        InputError: there is nothing to quantize.
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
            # nodes without weights, such as a pooling, go with what is before them
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
    """Ends of the units between two blocks: one a weight layer, cut as late as can be."""
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
    """Whether every two neighbouring weight layers can be cut apart."""
    return all(any(i in cuts for i in range(a, b)) for a, b in itertools.pairwise(layers))
