"""Networks with something degenerate in them go through every recipe, and come back from the disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.config import QuantizeConfig, SynthesizeConfig, build
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.quantization.presets import preset_options
from genie_cli.quantization.quantize import QuantizedNetwork
from genie_cli.student.load import load_student
from tests.support import stages
from tests.support.networks import noise, plain_input
from tests.support.students import save_student, student_of


class Net(nn.Module):
    """Two normalised convolutions, something in between, and a classifier."""

    def __init__(self, middle: nn.Module | None = None, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.middle = middle if middle is not None else nn.Identity()
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.bn1(self.conv1(x)).relu())
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


def zero_kernel() -> nn.Module:
    net = Net()
    net.conv1.weight.data[1] = 0
    net.conv2.weight.data[:, 2] = 0
    return net


def variance(value: float) -> nn.Module:
    """A channel that never varied, as its kernel is zero, and says so."""
    net = zero_kernel()
    net.bn1.running_var[1] = value
    return net


def constant_activations() -> nn.Module:
    """What conv2 reads is one number everywhere."""
    net = Net()
    net.bn1.weight.data.zero_()
    net.bn1.bias.data.fill_(0.7)
    return net


def zero_activations() -> nn.Module:
    net = Net()
    net.bn1.weight.data.fill_(1e-6)
    net.bn1.bias.data.fill_(-1)
    return net


class OneParameter(Net):
    """Two convolutions that own one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.bn3 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.other.weight = self.conv2.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn3(self.other(self.bn1(self.conv1(x)).relu())).relu()
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


class CalledTwice(Net):
    """One convolution that runs twice, in front of two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.bn3 = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn3(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "zero kernel": zero_kernel,
    "variance 0": lambda: variance(0.0),
    "variance 1e-12": lambda: variance(1e-12),
    "constant activations": constant_activations,
    "all-zero activations": zero_activations,
    "one channel": lambda: Net(width=1),
    "unit without weights": lambda: Net(nn.MaxPool2d(2)),
    "one parameter, two layers": OneParameter,
    "one layer, called twice": CalledTwice,
}
networks = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())


@cache
def teacher_of(make: Callable[[], nn.Module]) -> Teacher:
    return make_teacher("edge", make().eval(), plain_input(3, 8))


def quantize(teacher: Teacher, images: Tensor, preset: str, weight_bits: int = 2, **options: Any) -> QuantizedNetwork:
    own = {"weight_bits": weight_bits, "activation_bits": 4 if weight_bits == 2 else 8, "num_steps": 3, **options}
    config = build(QuantizeConfig, preset_options(preset), {**own, "preset": preset, "batch_size": 4})
    return stages.quantize_as_configured(teacher, images, config)


def draw_images() -> Tensor:
    return noise(8, 3, 8, seed=1)


@networks
def test_synthesis_is_finite(make: Callable[[], nn.Module]):
    config = SynthesizeConfig(num_images=4, batch_size=4, num_steps=4)
    result = stages.synthesize(teacher_of(make), config)
    assert result.images.isfinite().all() and result.images.std() > 0
    assert all(math.isfinite(row.loss) for row in result.log)


@networks
@pytest.mark.parametrize(
    ("preset", "weight_bits"), [("genie-m", 2), ("genie-m", 8), ("brecq", 2), ("minmax", 8), ("lsq", 2), ("dfq", 8)]
)
def test_every_recipe_gives_finite_numbers_that_come_back(
    make: Callable[[], nn.Module], preset: str, weight_bits: int, tmp_path: Path
):
    teacher, images = teacher_of(make), draw_images()
    network = quantize(teacher, images, preset, weight_bits)
    for name, weight in network.weights.items():
        assert weight().isfinite().all() and (weight.scale > 0).all() and weight.scale.isfinite().all(), name
    for name, activation in network.activations.items():
        assert 0 < float(activation.step_size) < math.inf, name
    logits = student_of(network)(images)
    assert logits.isfinite().all()
    if weight_bits == 8:
        wanted = teacher.graph(images)
        assert (logits - wanted).norm() <= 0.1 * wanted.norm()
    if weight_bits == 2 and preset != "genie-m":
        return
    save_student(network, teacher, tmp_path / "q")
    assert torch.equal(load_student(teacher, load_quantized(tmp_path / "q"))(images), logits)


@pytest.mark.parametrize("preset", ["genie-m", "brecq", "minmax", "lsq", "dfq"])
def test_dead_channels_stay_dead(preset: str):
    network = quantize(teacher_of(zero_kernel), draw_images(), preset)
    assert (network.weights["conv1"]()[1] == 0).all()
    if preset in ("minmax", "dfq"):  # elsewhere what reads the channel may learn
        assert (network.weights["conv2"]()[:, 2] == 0).all()


def test_what_a_silent_layer_feeds_is_its_bias():
    teacher, images = teacher_of(zero_activations), draw_images()
    wanted = teacher.graph(images)
    assert (wanted == wanted[0]).all()
    for preset in ("genie-m", "minmax"):
        network = quantize(teacher, images, preset)
        logits = student_of(network)(images)
        assert (logits == logits[0]).all()
        assert float(network.activations["conv2.input"].step_size) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("make", [OneParameter, CalledTwice])
def test_shared_weights_are_quantized_for_each_use(make: Callable[[], nn.Module]):
    """Each use has a batch norm and an input of its own: two layers of integers."""
    teacher = teacher_of(make)
    layers = set(quantize(teacher, draw_images(), "genie-m").weights)
    assert len(layers) == 4 and {"conv1", "fc"} < layers
