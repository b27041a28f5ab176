"""Reconstruction units: the parts of a network that are learned one by one.

A unit lies between two cut points, where one tensor alone is still to be read. A block is found without knowing its
class: it is a module that holds at least two weight layers and whose nodes lie exactly between two cut points. Outside
of blocks there is one unit per weight layer, with the batch norm, activation and pooling behind it. Layers without a
cut point between them share a unit; where that has too many layers, it is cut where several tensors cross (`limit.py`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import fx

from genie_cli.errors import InputError
from genie_cli.models.graph.cuts import cut_points, data_nodes, live_nodes
from genie_cli.models.graph.layers import weight_layers
from genie_cli.quantization.units.limit import Span, ends_within_limit, module_spans

MAX_CHAIN = 3
"""Most weight layers of a plain chain that is a block: a longer one (VGG's features) is cut at each layer."""
MAX_AROUND = 3
"""Most weight layers that a module adds to the block inside it, to be one block with it (squeeze-excitation)."""


@dataclass(frozen=True)
class Unit:
    """A part of the folded graph that is learned as one.

    Attributes:
        name: path of the block, or of the first layer.
        sources: the nodes before it whose values its nodes read, in data-flow order.
        nodes: its nodes in data-flow order.
        outputs: those of its nodes whose values are needed behind it, in data-flow order: what is reconstructed.
        passing: the nodes before it whose values are needed behind it, whether it reads them or not: they are carried
            on as they are.
        layers: names of its weight layers in data-flow order.
    """

    name: str
    sources: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    passing: tuple[fx.Node, ...]
    layers: tuple[str, ...]

    @property
    def entering(self) -> tuple[fx.Node, ...]:
        """The nodes before it whose values are needed by it or behind it."""
        return tuple(dict.fromkeys((*self.sources, *self.passing)))


def reconstruction_units(folded: fx.GraphModule, whole: bool = False, max_layers: int | None = None) -> list[Unit]:
    """Units in data-flow order that cover every node once; one unit for the network if `whole`.

    Args:
        folded: the folded graph.
        whole: the network is one unit, whatever `max_layers` says.
        max_layers: units of more weight layers are cut where several tensors cross; None: no unit is.

    Raises:
        InputError: the network has no layer to quantize.
    """
    nodes = data_nodes(folded)
    index = {node: i for i, node in enumerate(nodes)}
    layer_at = {index[layer.node]: layer.name for layer in weight_layers(folded)}
    if not layer_at:
        raise InputError("The network has no convolution or linear layer to quantize.")
    first = sum(node.op == "placeholder" for node in nodes) - 1
    ends: list[tuple[int, str | None]] = [(len(nodes) - 1, "network")]  # (last node index, block name)
    if not whole:
        ends = _ends_at_cut_points(folded, nodes, layer_at)
        if max_layers is not None:
            ends = ends_within_limit(folded, first, ends, sorted(layer_at), max_layers)
    live = live_nodes(folded)
    units, start = [], first
    for end, name in ends:
        own = tuple(nodes[start + 1 : end + 1])
        read = {source for node in own for source in node.all_input_nodes}
        layers = tuple(layer_at[i] for i in range(start + 1, end + 1) if i in layer_at)
        units.append(
            Unit(
                name or layers[0],
                tuple(node for node in live[start] if node in read),
                own,
                tuple(node for node in live[end] if index[node] > start),
                tuple(node for node in live[end] if index[node] <= start),
                layers,
            )
        )
        start = end
    return units


def _ends_at_cut_points(
    folded: fx.GraphModule, nodes: list[fx.Node], layer_at: dict[int, str]
) -> list[tuple[int, str | None]]:
    """The units between cut points: the index of the last node of each, and the name of those that are blocks."""
    cuts = set(cut_points(folded))
    ends: list[tuple[int, str | None]] = []
    position = 0
    for block in [*_blocks(nodes, cuts, sorted(layer_at)), Span("", len(nodes), len(nodes))]:
        ends += [(end, None) for end in _single_layers(position + 1, block.first - 1, cuts, layer_at)]
        if ends and ends[-1][0] < block.first - 1:
            # nodes without weights, such as a pooling, belong to the unit before them
            ends[-1] = (block.first - 1, ends[-1][1])
        if block.first < len(nodes):
            ends.append((block.last, block.name))
            position = block.last
    return ends


def _single_layers(first: int, last: int, cuts: set[int], layer_at: dict[int, str]) -> list[int]:
    """Ends of the units between two blocks: one per weight layer, each cut as late as possible."""
    inside = [i for i in range(first, last + 1) if i in layer_at]
    ends = []
    for this, following in itertools.pairwise(inside):
        between = [i for i in range(this, following) if i in cuts]
        if between:
            ends.append(between[-1])
    return [*ends, last] if inside else ends


def _blocks(nodes: list[fx.Node], cuts: set[int], layers: list[int]) -> list[Span]:
    valid = [span for span in module_spans(nodes, layers) if span.first - 1 in cuts and span.last in cuts]
    valid.sort(key=lambda span: (span.last - span.first, -len(span.name)))
    chosen: list[Span] = []
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
