"""Units of too many layers are cut where several tensors cross: where, in which order of preference, by which names."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.cuts import crossing_places, cut_points, data_nodes, live_nodes, output_nodes
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.subgraph import extract
from genie_cli.models.graph.tensors import numel_per_image
from genie_cli.quantization.activations.passing import as_tuple
from genie_cli.quantization.units.limit import _cheapest, _Cut
from genie_cli.quantization.units.partition import Unit, reconstruction_units
from tests.support.networks import CellNet, noise, plain_input
from tests.support.students import node_values

SPEC = plain_input(3, 8)


@pytest.fixture(scope="module")
def cells() -> fx.GraphModule:
    return capture(CellNet(), SPEC)


def names(folded: fx.GraphModule, max_layers: int | None) -> list[str]:
    return [unit.name for unit in reconstruction_units(folded, max_layers=max_layers)]


def walk(folded: fx.GraphModule, units: list[Unit], images: Tensor) -> dict[fx.Node, Tensor]:
    """What is alive at the end, by way of the units, each of which sees the values alone that it names."""
    values = {data_nodes(folded)[0]: images}
    for unit in units:
        assert set(values) == set(unit.entering)
        piece = extract(folded, unit.nodes, unit.sources, unit.outputs)
        made = as_tuple(piece(*(values[node] for node in unit.sources)))
        values = {**{node: values[node] for node in unit.passing}, **dict(zip(unit.outputs, made, strict=True))}
    return values


def test_without_a_limit_what_no_cut_point_divides_is_one_unit(cells: fx.GraphModule):
    assert [(unit.name, len(unit.layers)) for unit in reconstruction_units(cells)] == [
        ("stem", 1), ("side", 9), ("join", 1), ("fc", 1)
    ]  # fmt: skip
    assert names(cells, 9) == names(cells, None)


def test_parts_are_cells_where_cells_fit(cells: fx.GraphModule):
    units = reconstruction_units(cells, max_layers=2)
    assert [unit.name for unit in units] == ["stem", "side", "cells.0", "cells.1", "cells.2", "cells.3", "join", "fc"]
    third = units[4]  # cells.2 reads the last two of four tensors, and all four are joined later
    assert len(third.sources) == 3 - 1 and len(third.outputs) == 1 and len(third.passing) == 4
    assert set(third.sources) < set(third.passing)
    assert all(unit.layers == (f"{unit.name}.conv1", f"{unit.name}.conv2") for unit in units[2:6])


def test_parts_are_as_few_as_can_be_and_end_where_blocks_end(cells: fx.GraphModule):
    units = reconstruction_units(cells, max_layers=5)
    assert [(unit.name, len(unit.layers)) for unit in units] == [
        ("stem", 1),
        ("side", 5),
        ("cells.2.conv1", 4),
        ("join", 1),
        ("fc", 1),
    ]
    assert [len(unit.outputs) for unit in units] == [1, 3, 1, 1, 1]


def test_blocks_are_cut_where_they_do_not_fit(cells: fx.GraphModule):
    units = reconstruction_units(cells, max_layers=1)
    assert [unit.layers for unit in units] == [(layer.name,) for layer in weight_layers(cells)]
    assert [unit.name for unit in units] == [layer.name for layer in weight_layers(cells)]
    halves = {unit.name: unit for unit in units}
    assert halves["cells.1.conv1"].outputs[0].name.startswith("relu")  # a layer keeps its activation function


@pytest.mark.parametrize("max_layers", [1, 2, 3, 4, 7, 12])
def test_units_hand_on_what_the_network_computes(cells: fx.GraphModule, max_layers: int):
    images = noise(4, 3, 8)
    units = reconstruction_units(cells, max_layers=max_layers)
    assert [node for unit in units for node in unit.nodes] == data_nodes(cells)[1:]
    (output,) = walk(cells, units, images).values()
    assert torch.equal(output, cells(images))
    assert max(len(unit.layers) for unit in units) <= max_layers


def test_the_whole_network_is_never_cut(cells: fx.GraphModule):
    (unit,) = reconstruction_units(cells, whole=True, max_layers=1)
    assert unit.name == "network" and len(unit.layers) == 12 and unit.outputs == (data_nodes(cells)[-1],)


def test_a_second_capture_has_the_same_units(cells: fx.GraphModule):
    again = capture(CellNet(), SPEC)
    for max_layers in (1, 3, 5):
        one, other = (reconstruction_units(graph, max_layers=max_layers) for graph in (cells, again))
        assert [(unit.name, unit.layers) for unit in one] == [(unit.name, unit.layers) for unit in other]


class Patched(nn.Module):
    """Two layers on patches of the images, whose first dimension is not the batch, beside a skip."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.after, self.last, self.fc = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        patches = x.reshape(-1, 4, 2, 4, 8).transpose(1, 2).reshape(-1, 4, 4, 8)
        patches = self.two(self.one(patches).relu()).relu()
        back = patches.reshape(-1, 2, 4, 4, 8).transpose(1, 2).reshape(-1, 4, 8, 8)
        return self.fc((self.last(self.after(back).relu()) + x).mean((2, 3)))


def test_nothing_but_tensors_with_a_row_per_image_crosses():
    folded = capture(Patched(), SPEC)
    units = reconstruction_units(folded, max_layers=1)
    assert [unit.layers for unit in units] == [("before",), ("one", "two"), ("after",), ("last",), ("fc",)]
    batch = noise(6, 3, 8)
    values = node_values(folded, batch)
    for unit in units:
        assert all(len(values[node.name]) == len(batch) for node in (*unit.outputs, *unit.passing))
    (output,) = walk(folded, units, batch).values()
    assert torch.equal(output, folded(batch))


def with_outputs(graph: fx.GraphModule, *indices: int) -> fx.GraphModule:
    """The graph that returns the values of these nodes, by index into the data nodes, as a tuple."""
    nodes = data_nodes(graph)
    return extract(graph, nodes, nodes[:1], [nodes[i] for i in indices])


def test_a_finished_output_is_carried_on_and_is_no_obstacle_to_cut_points():
    """With an early head: its value is alive until the end, and the units behind it stay as they are."""
    torch.manual_seed(0)
    trunk = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten()
    )
    single = capture(trunk, SPEC)
    early, last = 2, len(data_nodes(single)) - 1
    double = with_outputs(single, early, last)
    nodes = data_nodes(double)
    assert cut_points(double) == cut_points(single) and names(double, None) == names(single, None)
    units = reconstruction_units(double)
    assert output_nodes(double) == [nodes[early], nodes[last]] and live_nodes(double)[-1] == (nodes[early], nodes[last])
    assert [unit.passing for unit in units] == [(), (nodes[early],), (nodes[early],)]
    assert [unit.outputs for unit in units] == [(nodes[early],), (nodes[4],), (nodes[last],)]
    images = noise(3, 3, 8)
    ends = walk(double, units, images)
    assert [
        torch.equal(ends[node], value) for node, value in zip(output_nodes(double), double(images), strict=True)
    ] == [
        True,
        True,
    ]


class Head(nn.Module):
    """A head beside the trunk: its output is read by nobody."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head, self.deep, self.fc = (
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(4, 2, 1),
            nn.Conv2d(4, 4, 3),
            nn.Linear(4, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        aside = self.head(x).mean((2, 3))
        deep = self.fc(self.deep(x).relu().mean((2, 3)))
        return torch.cat([aside, deep], 1)


def test_a_head_beside_the_trunk_is_a_unit_and_its_output_finished():
    joined = capture(Head(), SPEC)
    nodes = data_nodes(joined)
    (concatenation,) = output_nodes(joined)
    aside, deep = concatenation.all_input_nodes
    double = with_outputs(joined, nodes.index(aside), nodes.index(deep))
    units = reconstruction_units(double, max_layers=1)
    assert [unit.layers for unit in units] == [("stem",), ("head",), ("deep",), ("fc",)]
    assert [len(unit.passing) for unit in units] == [0, 1, 1, 1]  # the trunk, then the head's output
    values = walk(double, units, noise(2, 3, 8))
    assert [tuple(values[node].shape) for node in output_nodes(double)] == [(2, 2), (2, 5)]


# the division that costs least


@st.composite
def places(draw: st.DrawFn) -> list[_Cut | None]:
    count = draw(st.integers(0, 7))
    return [
        draw(st.none() | st.builds(_Cut, st.booleans(), st.integers(1, 4), st.just(10 * i)))
        for i in range(1, count + 1)
    ]


def cost(cuts: list[_Cut | None], chosen: tuple[int, ...], max_layers: int) -> tuple[int, ...]:
    """The cost of cutting behind the layers `chosen`, from the definition."""
    ends = [0, *(i + 1 for i in chosen), len(cuts) + 1]
    sizes = [last - first for first, last in itertools.pairwise(ends)]
    taken = [cuts[i] for i in chosen]
    assert None not in taken
    return (
        sum(max(0, size - max_layers) for size in sizes),
        sum(cut.is_inside for cut in taken if cut is not None),
        len(sizes),
        sum(cut.numel for cut in taken if cut is not None),
        sum(size**2 for size in sizes),
        -sum(cut.place for cut in taken if cut is not None),
    )


@settings(max_examples=150, deadline=None)
@given(places(), st.integers(1, 5))
def test_no_division_costs_less(cuts: list[_Cut | None], max_layers: int):
    possible = [i for i, cut in enumerate(cuts) if cut is not None]
    divisions = itertools.chain.from_iterable(itertools.combinations(possible, k) for k in range(len(possible) + 1))
    least = min(cost(cuts, chosen, max_layers) for chosen in divisions)
    found = _cheapest(cuts, max_layers)
    assert cost(cuts, tuple(cuts.index(cut) for cut in found), max_layers) == least


def test_places_and_elements_are_those_of_the_graph(cells: fx.GraphModule):
    """Every value of this network has a row per image, so that each place may be a cut."""
    live = live_nodes(cells)
    assert crossing_places(cells) == list(range(len(live)))
    sizes = [sum(map(numel_per_image, alive)) for alive in live]
    state = 6 * 4 * 4
    assert max(sizes) == 6 * state and sizes[0] == 3 * 8 * 8 and sizes[-1] == 5
