"""A unit of too many layers is cut where several tensors cross.

Between two of its weight layers a cut may stand wherever all values that are needed behind it have a row per image.
The parts are chosen by what they cost, in this order: layers above the limit; cuts inside of a block, a module of at
least two weight layers; the number of parts; the elements that cross the cuts; parts of uneven size. The order is total
and nothing is drawn, so that a network always has the same units.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import fx

from genie_cli.models.graph.cuts import crossing_places, data_nodes, live_nodes
from genie_cli.models.graph.tensors import numel_per_image


@dataclass(frozen=True)
class Span:
    """Nodes first..last (indices into the data nodes) of one module."""

    name: str
    first: int
    last: int


def module_spans(nodes: Sequence[fx.Node], layers: Sequence[int]) -> list[Span]:
    """The modules that hold at least two of `layers` (indices into `nodes`) and whose nodes stand side by side."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, node in enumerate(nodes):
        for path in node.meta.get("modules", ()):
            members[path].append(i)
    spans = []
    for path, indices in members.items():
        span = Span(path, indices[0], indices[-1])
        num_layers = sum(span.first <= i <= span.last for i in layers)
        if num_layers >= 2 and len(indices) == span.last - span.first + 1:
            spans.append(span)
    return spans


def ends_within_limit(
    folded: fx.GraphModule, first: int, ends: Sequence[tuple[int, str | None]], layers: Sequence[int], max_layers: int
) -> list[tuple[int, str | None]]:
    """Ends of units, those of too large ones replaced by the ends of their parts.

    Args:
        folded: the folded graph.
        first: index (into the data nodes, as all others) of the node before the first unit.
        ends: the last node of each unit, and its name where it is a block.
        layers: the weight layers, in order.
        max_layers: most weight layers of a part, where there are places to cut at.

    Returns:
        As `ends`; a part whose layers are those of one module has that module's name.
    """
    spans = module_spans(data_nodes(folded), layers)
    edges = {span.first - 1 for span in spans} | {span.last for span in spans}
    live = live_nodes(folded)
    cuts = [_Cut(i not in edges, sum(map(numel_per_image, live[i])), i) for i in crossing_places(folded)]
    found: list[tuple[int, str | None]] = []
    start = first
    for end, name in ends:
        inside = [i for i in layers if start < i <= end]
        chosen: list[_Cut] = []
        if len(inside) > max_layers:
            gaps = itertools.pairwise(inside)
            best = [_best(cut for cut in cuts if layer <= cut.place < following) for layer, following in gaps]
            chosen = _cheapest(best, max_layers)
        parts = [start, *(cut.place for cut in chosen), end]
        found += (
            [(b, _block_of(spans, layers, a, b)) for a, b in itertools.pairwise(parts)] if chosen else [(end, name)]
        )
        start = end
    return found


def _block_of(spans: Sequence[Span], layers: Sequence[int], start: int, end: int) -> str | None:
    """The module that lies between two places and holds all layers that do; None: there is no such module."""
    inside = [i for i in layers if start < i <= end]
    holding = [span for span in spans if start < span.first <= inside[0] and inside[-1] <= span.last <= end]
    return max(holding, key=lambda span: span.last - span.first).name if holding else None


def _best(cuts: Iterable[_Cut]) -> _Cut | None:
    """The cut to take out of those between two neighbouring layers, if there is one."""
    return min(cuts, key=lambda cut: (cut.is_inside, cut.numel, -cut.place), default=None)


class _Cut(NamedTuple):
    """A place between two neighbouring weight layers where a unit may end.

    Attributes:
        is_inside: no block begins or ends here.
        numel: elements per image of all tensors that are needed behind it.
        place: index of the last node before it.
    """

    is_inside: bool
    numel: int
    place: int


class _Cost(NamedTuple):
    """The cost of a division, compared field by field.

    Attributes:
        above: layers above the limit, over all parts.
        num_inside: cuts inside of a block.
        num_parts: number of parts.
        numel: elements per image that cross the cuts.
        unevenness: squared numbers of layers, over all parts.
        earliness: places of the cuts, with a minus: of two that cost the same the later one is taken.
    """

    above: int = 0
    num_inside: int = 0
    num_parts: int = 0
    numel: int = 0
    unevenness: int = 0
    earliness: int = 0

    def with_part(self, num_layers: int, max_layers: int, cut: _Cut | None) -> _Cost:
        """The cost with one more part of so many layers, which ends at `cut`; None: at the end of the unit."""
        return _Cost(
            self.above + max(0, num_layers - max_layers),
            self.num_inside + (cut is not None and cut.is_inside),
            self.num_parts + 1,
            self.numel + (cut.numel if cut is not None else 0),
            self.unevenness + num_layers**2,
            self.earliness - (cut.place if cut is not None else 0),
        )


def _cheapest(cuts: Sequence[_Cut | None], max_layers: int) -> list[_Cut]:
    """The cuts of the division that costs least; `cuts` has the best one behind each layer but the last, if any."""
    best: list[tuple[_Cost, list[_Cut]] | None] = [(_Cost(), [])]  # of the first layers: 0, 1, 2, ...
    for num_before, cut in enumerate([*cuts, None], 1):
        is_end = num_before == len(cuts) + 1
        if cut is None and not is_end:
            best.append(None)
            continue
        options = [
            (cost.with_part(num_before - earlier, max_layers, cut), taken)
            for earlier, kept in enumerate(best)
            if kept is not None
            for cost, taken in [kept]
        ]
        cost, taken = min(options, key=lambda option: option[0])
        best.append((cost, taken if cut is None else [*taken, cut]))
    last = best[-1]
    assert last is not None
    return last[1]
