"""Swing convolution: the shift against reflection padding and cropping, and who is shifted when."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from genie_cli.config import InputSpec, SynthesizeConfig
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.runtime.determinism import make_generator
from genie_cli.synthesis import teacher_network
from genie_cli.synthesis.statistics_graph import statistics_graph
from genie_cli.synthesis.swing import SwingShift, draw_offsets, set_offsets, swing_strided_convolutions
from tests.support import CPU, stages

OFFSETS = list(itertools.product(range(3), repeat=2))


def pad_and_crop(x: Tensor, offsets: tuple[int, int]) -> Tensor:
    """Reflection by one pixel and a crop back to size; a single pixel has nothing to reflect."""
    height, width = x.shape[2:]
    reach = (int(width > 1), int(height > 1))
    padded = F.pad(x, (reach[0], reach[0], reach[1], reach[1]), mode="reflect") if any(reach) else x
    top, left = offsets[0] * reach[1], offsets[1] * reach[0]
    return padded[:, :, top : top + height, left : left + width]


def shifted(x: Tensor, offsets: tuple[int, ...]) -> Tensor:
    shift = SwingShift()
    shift.offsets = torch.tensor(offsets)
    return shift(x)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), channels_last=st.booleans())
def test_shift_is_reflection_and_crop_for_all_nine_offsets(height: int, width: int, channels_last: bool):
    x = torch.randn(2, 3, height, width)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for offsets in OFFSETS:
        assert torch.equal(shifted(x, offsets), pad_and_crop(x, offsets)), offsets


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2), (3, 5)], ids=str)
@pytest.mark.parametrize("offsets", OFFSETS, ids=str)
def test_gradient_is_that_of_reflection_and_crop(size: tuple[int, int], offsets: tuple[int, int]):
    weight = torch.randn(2, 3, *size, dtype=torch.float64)
    x, own = (torch.ones(2, 3, *size, dtype=torch.float64, requires_grad=True) for _ in range(2))
    (shifted(x, offsets) * weight).sum().backward()
    (pad_and_crop(own, offsets) * weight).sum().backward()
    assert x.grad is not None and own.grad is not None
    torch.testing.assert_close(x.grad, own.grad, rtol=0, atol=1e-12)


def test_shift_by_hand():
    row = torch.arange(4.0).view(1, 1, 1, 4)
    assert shifted(row, (1, 0)).flatten().tolist() == [1, 0, 1, 2]
    assert shifted(row, (1, 1)).flatten().tolist() == [0, 1, 2, 3]
    assert shifted(row, (1, 2)).flatten().tolist() == [1, 2, 3, 2]
    assert shifted(row, (2, 1)).flatten().tolist() == [0, 1, 2, 3]  # one row stays


def test_no_offsets_leave_the_input():
    x = torch.randn(2, 3, 4, 4)
    assert SwingShift()(x) is x


def test_a_sequence_is_not_shifted():
    shift, x = SwingShift(), torch.randn(2, 3, 4)
    shift.offsets = torch.tensor([0, 2])
    assert shift(x) is x


def test_only_strided_convolutions_are_shifted(digits_teacher: Teacher):
    graph = statistics_graph(digits_teacher.graph, torch.float32)
    shifts = swing_strided_convolutions(graph)
    modules = dict(graph.named_modules())
    found = {}
    for layer in weight_layers(graph):
        source = layer.node.args[0]
        if source.op == "call_module" and isinstance(modules[source.target], SwingShift):
            found[layer.name] = modules[source.target]
    strided = ["layer2.0.conv1", "layer2.0.downsample.0", "layer3.0.conv1", "layer3.0.downsample.0"]
    assert sorted(found) == strided
    assert len(shifts) == 4 and {id(s) for s in shifts} == {id(s) for s in found.values()}


class Strided(nn.Module):
    """Two readers of one tensor, of which one is strided, and a convolution with stride 1 x 2."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.strided, self.plain = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(1, 4, 3, 1, 1)
        self.mixed = nn.Conv2d(4, 4, 3, (1, 2), 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.norms[0](self.strided(x)), self.norms[1](self.plain(x))
        c = self.norms[2](self.mixed(a))
        return self.fc(a.mean((2, 3)) + b.mean((2, 3)) + c.mean((2, 3)))


def site_losses(network: Strided, images: Tensor, first: tuple[int, int], second: tuple[int, int]) -> list[float]:
    def gap(x: Tensor) -> float:
        std, mean = torch.std_mean(x, (0, 2, 3))
        return float((mean.square().sum() + (std - (1 + 1e-6) ** 0.5).square().sum()) / x.shape[1])

    a = network.strided(pad_and_crop(images, first))
    b = network.plain(images)
    c = network.mixed(pad_and_crop(network.norms[0](a), second))
    return [gap(a), gap(b), gap(c)]


@torch.no_grad()
@pytest.mark.parametrize(("first", "second"), [((0, 2), (1, 1)), ((1, 1), (2, 0)), ((2, 1), (0, 0))], ids=str)
def test_shifted_network_reads_shifted_inputs(first: tuple[int, int], second: tuple[int, int]):
    network = Strided().eval()
    spec = InputSpec(num_channels=1, size=8, mean=(0.0,), std=(1.0,))
    graph = statistics_graph(make_teacher("strided", network, spec).graph, torch.float32)
    shifts = swing_strided_convolutions(graph)
    images = torch.randn(4, 1, 8, 8)
    assert len(shifts) == 2
    set_offsets(shifts, torch.tensor([first, second]))
    losses = sorted(loss.item() for loss in graph(images))
    assert losses == pytest.approx(sorted(site_losses(network, images, first, second)), rel=1e-4)


def draws(seed: int, num_steps: int, num_layers: int = 3) -> list[list[tuple[int, ...]]]:
    offsets = draw_offsets(num_steps, num_layers, make_generator(CPU, seed, "swing", 0))
    return [[tuple(layer) for layer in step] for step in offsets.tolist()]


def test_offsets_cover_all_nine_places_evenly_a_layer():
    steps = draws(0, 900)
    for layer in range(3):
        counts = [sum(step[layer] == place for step in steps) for place in OFFSETS]
        assert sum(counts) == 900  # nothing but the nine places
        assert min(counts) > 60 and max(counts) < 140  # 100 expected, standard deviation 9.4


def test_layers_and_steps_are_drawn_on_their_own():
    steps = draws(0, 900)
    assert 60 < sum(step[0] == step[1] for step in steps) < 140
    assert 60 < sum(a[0] == b[0] for a, b in itertools.pairwise(steps)) < 140


def test_offsets_depend_on_the_seed_alone():
    assert draws(5, 20) == draws(5, 20)
    assert draws(5, 20) != draws(6, 20)


@pytest.mark.parametrize(("swing", "num_shifts"), [(True, 4), (False, 0)])
def test_swing_is_switched_by_the_configuration(
    digits_teacher: Teacher, monkeypatch: pytest.MonkeyPatch, swing: bool, num_shifts: int
):
    seen: list[list[list[int]]] = []

    def record(shifts: list[SwingShift], offsets: Tensor) -> None:
        assert len(shifts) == num_shifts
        seen.append(offsets.tolist())
        set_offsets(shifts, offsets)

    monkeypatch.setattr(teacher_network, "set_offsets", record)
    config = SynthesizeConfig(num_images=2, num_steps=3, swing=swing)
    stages.synthesize(digits_teacher, config)
    expected = draw_offsets(3, num_shifts, make_generator(CPU, 0, "swing", 0))
    assert seen == expected.tolist()  # new offsets every step
