"""The preset closed-form: whole networks, without steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genie_cli.config import QuantizeConfig, build
from genie_cli.errors import NumbersError, UsageError
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.quantization.closed_form import unit as closed_form_unit
from genie_cli.quantization.plan import make_plan
from genie_cli.quantization.presets import preset_options
from genie_cli.quantization.quantize import quantize_network
from genie_cli.quantization.result import QuantizedNetwork
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Event, Note
from tests.support import CPU
from tests.support.networks import digit_images, noise, plain_input


def silent(event: Event) -> None:
    """Nobody looks."""


def quantize(teacher: Teacher, images: Tensor, preset: str, **options: object) -> QuantizedNetwork:
    config = build(QuantizeConfig, preset_options(preset), {"preset": preset, **options})
    return quantize_network(make_plan(teacher, config, CPU), images, RunContext.alone(CPU, torch.float32, silent))


@pytest.mark.parametrize("bits", [2, 4])
def test_outputs_are_nearer_to_the_teacher_than_with_nearest_rounding(digits_teacher: Teacher, bits: int):
    images = digit_images(128)
    errors = {
        preset: quantize(digits_teacher, images, preset, weight_bits=bits, activation_bits=8).output_errors["output"]
        for preset in ("mse", "closed-form")
    }
    assert errors["closed-form"] < errors["mse"] / 2


class Mixed(nn.Module):
    """Layers of many kinds: depthwise, in groups, transposed, over one dimension, linear, one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.depthwise = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped, self.up = nn.Conv2d(8, 8, 3, 2, 1, groups=2, bias=False), nn.ConvTranspose2d(8, 4, 2, 2)
        self.line, self.last = nn.Conv1d(4, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.depthwise(F.relu(self.first(x))))))
        x = F.relu(self.line(F.relu(self.up(x)).flatten(2)))
        return self.last(x.mean(2))


@pytest.fixture
def mixed() -> Teacher:
    return make_teacher("mixed", Mixed(), plain_input(1, 8))


def test_each_channel_has_the_mean_that_it_has_in_the_teacher(mixed: Teacher):
    images = noise(64, size=8)
    network = quantize(mixed, images, "closed-form", weight_bits=3, activation_bits=8)
    assert network.weights.keys() == {"first", "depthwise", "grouped", "up", "line", "last"}
    bias = get_tensor(network.plan.folded.graph, "first.bias")
    own = F.conv2d(images, network.weights["first"](), bias, padding=1).mean((0, 2, 3))
    wanted = Mixed().first(images).mean((0, 2, 3))
    torch.testing.assert_close(own, wanted, rtol=0, atol=1e-4)
    nearest = quantize(mixed, images, "mse", weight_bits=3, activation_bits=8)
    assert network.output_errors["output"] < nearest.output_errors["output"]


def test_images_are_looked_at_in_parts_of_any_size(mixed: Teacher, monkeypatch: pytest.MonkeyPatch):
    images = noise(40, size=8)
    network = quantize(mixed, images, "closed-form")
    monkeypatch.setattr("genie_cli.quantization.units.unit_graph._MOST_ROWS", 7)
    again = quantize(mixed, images, "closed-form")
    for name, weight in network.weights.items():
        assert (weight.codes == again.weights[name].codes).float().mean() > 0.98, name


def test_inputs_that_are_not_finite_are_named(mixed: Teacher):
    images = noise(16, size=8)
    images[3, 0, 2, 2] = torch.inf
    with pytest.raises(NumbersError, match=r"NaN or infin"):
        quantize(mixed, images, "closed-form", activation_bits=None)


class DeadChannel(nn.Module):
    """An unpadded depthwise convolution of which a channel reads a constant."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.last = nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 4)
        with torch.no_grad():
            self.norm.weight[2], self.norm.bias[2] = 0.0, 2.5

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.depthwise(F.relu(self.norm(self.first(x))))).mean((2, 3)))


def test_a_channel_of_constants_is_rounded_to_nearest():
    owner = make_teacher("dead", DeadChannel().eval(), plain_input(1, 40))
    network = quantize(owner, noise(24, size=40), "closed-form", weight_bits=4, activation_bits=8)
    weight, own = get_tensor(network.plan.folded.graph, "depthwise.weight"), network.weights["depthwise"]
    assert bool(((own()[2] - weight[2]).abs() <= 0.51 * own.scale[2]).all())
    assert network.output_errors["output"] < 0.01


def test_a_layer_of_too_many_inputs_is_rounded_to_nearest_and_named(mixed: Teacher, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(closed_form_unit, "_MOST_INPUTS", 33)
    events: list[Event] = []
    config = build(QuantizeConfig, preset_options("closed-form"), {"preset": "closed-form"})
    context = RunContext.alone(CPU, torch.float32, events.append)
    quantize_network(make_plan(mixed, config, CPU), noise(16, size=8), context)
    (note,) = (event.message for event in events if isinstance(event, Note))
    assert note.startswith("layer 'grouped' is rounded to nearest: its channels read 36 inputs each")


class Twice(nn.Module):
    """A weight that two layers read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.again = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(F.relu(self.again(F.relu(self.first(x))))).mean((2, 3))


def test_a_weight_that_is_read_twice_has_integers_for_each_reader():
    teacher = make_teacher("twice", Twice(), plain_input(1, 8))
    network = quantize(teacher, noise(32, size=8), "closed-form", weight_bits=4, activation_bits=8)
    assert network.weights.keys() == {"first", "again", "again.reuse1"} and network.output_errors["output"] < 0.2


@pytest.mark.parametrize("own", [{"reconstruct": True}, {"data_free": True}])
def test_it_has_no_steps_and_needs_images(own: dict[str, bool]):
    with pytest.raises(UsageError, match="closed_form"):
        build(QuantizeConfig, preset_options("closed-form"), own)
