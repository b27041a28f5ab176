"""DFQ over whole networks: accuracy, what each part buys, and what it refuses."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genie_cli.config import InputSpec, QuantizeConfig
from genie_cli.data.sources import open_data
from genie_cli.errors import InputError, UsageError
from genie_cli.models.graph.equalization import add_channel_clips, equalize, has_channel_clips
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor, named_tensors, set_tensor
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.quantization.data_free import quantize as data_free
from genie_cli.quantization.data_free.quantize import expected_shift
from genie_cli.quantization.quantize import QuantizedNetwork
from genie_cli.runtime.progress import Advanced, Event, StageFinished, StageStarted
from genie_cli.student.build import insert_quantizers
from genie_cli.student.formats import activation_format, weight_format
from genie_cli.student.grid import minmax_weight_grid
from tests.support import stages
from tests.support.networks import noise
from tests.support.stages import quantize_without_images
from tests.support.students import student_of

SPEC = InputSpec(size=8)


def images(count: int = 256, seed: int = 7) -> Tensor:
    return noise(count, 3, 8, seed)


class Separable(nn.Module):
    """Depthwise-separable convolutions with ReLU6, scaled so that the channels' weights differ widely."""

    def __init__(self, spread: float, activation: type[nn.Module] = nn.ReLU6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.stem_norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.depthwise, self.depthwise_norm = nn.Conv2d(16, 16, 3, groups=16, bias=False), nn.BatchNorm2d(16)
        self.pointwise, self.pointwise_norm = nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.fc = nn.Linear(24, 5)
        self.act = activation()
        factors = []
        for norm in (self.stem_norm, self.depthwise_norm, self.pointwise_norm):
            factor = 2 ** (torch.rand(norm.num_features) * 2 * spread - spread)
            norm.weight.data, norm.bias.data = factor, factor * torch.randn(norm.num_features)
            norm.momentum = 1.0
            factors.append(factor)
        self.pointwise.weight.data /= factors[1].view(1, -1, 1, 1)
        self.fc.weight.data /= factors[2]
        with torch.no_grad():
            self.train()(images(2048, seed=1))  # running statistics

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem_norm(self.stem(x)))
        x = self.act(self.depthwise_norm(self.depthwise(x)))
        x = self.act(self.pointwise_norm(self.pointwise(x)))
        return self.fc(x.mean((2, 3)))


@cache
def separable(spread: float = 2.5, activation: type[nn.Module] = nn.ReLU6) -> Teacher:
    return make_teacher("separable", Separable(spread, activation), SPEC)


@torch.no_grad()
def error(teacher: Teacher, network: QuantizedNetwork) -> float:
    """Squared error of the logits over their squared distance from their own mean."""
    wanted = teacher.graph(images())
    found = student_of(network)(images())
    return float((found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


# how well it does


@pytest.mark.parametrize(("bits", "most"), [((8, 8), 1.0), ((4, 8), 3.0)], ids=["W8A8", "W4A8"])
@pytest.mark.parametrize("weight_range", ["search", "minmax"])
def test_embedded_network_keeps_its_accuracy(
    digits_teacher: Teacher, bits: tuple[int, int], most: float, weight_range: Any
):
    data = open_data("digits", digits_teacher.input)
    config = QuantizeConfig(weight_bits=bits[0], activation_bits=bits[1], weight_range=weight_range)
    student = student_of(quantize_without_images(digits_teacher, config))
    result = stages.evaluate(student, data, 10, 128, teacher=digits_teacher.graph)
    assert result.as_json()["drop"] <= most


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.ReLU])
def test_equalization_pays_on_uneven_channels(activation: type[nn.Module]):
    """Four bits cannot hold columns that differ by a factor of 30; real images do not help minmax there."""
    teacher = separable(activation=activation)
    config = QuantizeConfig(weight_bits=4, activation_bits=8, protocol="ait", weight_range="minmax")
    found = error(teacher, quantize_without_images(teacher, config))
    options = {**config.model_dump(), "reconstruct": False, "activation_range": "minmax"}
    minmax = error(teacher, stages.quantize(teacher, images(), QuantizeConfig(**options)))
    plain = error(teacher, quantize_without_images(teacher, config.model_copy(update={"equalize": False})))
    assert found < 0.5 * minmax and found < 0.5 * plain


def test_eight_bits_are_close():
    config = QuantizeConfig(weight_bits=8, activation_bits=8, weight_range="minmax")
    assert error(separable(spread=0), quantize_without_images(separable(spread=0), config)) < 0.02


# bias correction


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((6, 4, 3, 3), 1), ((6, 1, 3, 3), 6), ((12, 1, 3, 3), 6), ((6, 2, 1, 1), 3), ((5, 7), 1), ((6, 3, 5), 2)],
    ids=["full", "depthwise", "depth-multiplier", "grouped", "linear", "1d"],
)
def test_expected_shift_against_the_layer_itself(shape: tuple[int, ...], groups: int):
    """On an input that is its own mean everywhere, the layer of the error puts out the shift."""
    draws = torch.Generator().manual_seed(0)
    weight_error = torch.randn(shape, generator=draws)
    mean = torch.randn(shape[1] * groups, generator=draws)
    if len(shape) == 2:
        wanted = F.linear(mean[None], weight_error)[0]
    else:
        x = mean.view(1, -1, *[1] * (len(shape) - 2)).expand(1, -1, *shape[2:])
        convolve = F.conv1d if len(shape) == 3 else F.conv2d
        wanted = convolve(x, weight_error, groups=groups).flatten()
    torch.testing.assert_close(expected_shift(weight_error, mean, groups).float(), wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_bias_correction_moves_the_means_back(monkeypatch: pytest.MonkeyPatch):
    """Weights alone are quantized, coarsely; the logits' mean over images is what the batch norms promise."""
    teacher = separable(spread=0)
    config = QuantizeConfig(weight_bits=3, protocol="ait", weight_range="minmax")
    wanted = teacher.graph(images(2048)).mean(0)

    def distance(network: QuantizedNetwork) -> float:
        graph = network.plan.folded.graph
        for layer in weight_layers(graph):
            set_tensor(graph, layer.weight_key, network.weights[layer.name]())
        return float((graph(images(2048)).mean(0) - wanted).norm())

    corrected = distance(quantize_without_images(teacher, config))
    monkeypatch.setattr(
        data_free, "expected_shift", lambda error, mean, groups: torch.zeros(len(error), dtype=torch.float64)
    )
    assert corrected < 0.4 * distance(quantize_without_images(teacher, config))


def test_biases_by_hand():
    """b - sum over kernel and inputs of (W_q - W) E[x], with E[x] of the clipped normal, in NumPy."""
    teacher = separable(spread=0, activation=nn.ReLU)
    config = QuantizeConfig(weight_bits=3, weight_range="minmax", protocol="ait")
    network = quantize_without_images(teacher, config)
    equalized = equalize(fold_batch_norms(teacher.graph))
    beta = get_tensor(teacher.graph, "stem_norm.bias").double() / equalized.scales["stem"]
    gamma = get_tensor(teacher.graph, "stem_norm.weight").double().abs() / equalized.scales["stem"]
    z = np.linspace(-8, 8, 20_001)
    density = np.exp(-z * z / 2) / np.exp(-z * z / 2).sum()
    mean = np.maximum(beta.numpy()[:, None] + gamma.numpy()[:, None] * z, 0) @ density
    weight = get_tensor(equalized.folded.graph, "depthwise.weight")
    weight_error = (network.weights["depthwise"]() - weight).double().numpy().sum((1, 2, 3))
    wanted = get_tensor(equalized.folded.graph, "depthwise.bias").numpy() - weight_error * mean
    found = get_tensor(network.plan.folded.graph, "depthwise.bias").numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    # the first layer's input has mean 0
    first = get_tensor(network.plan.folded.graph, "stem.bias")
    assert torch.equal(first, get_tensor(equalized.folded.graph, "stem.bias"))


def test_layer_without_bias_gets_none():
    """A bias that the network's code does not have could not be loaded again."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 5, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))

    teacher = make_teacher("plain", Plain(), SPEC)
    network = quantize_without_images(teacher, QuantizeConfig())
    assert set(named_tensors(network.plan.folded.graph)) == set(named_tensors(fold_batch_norms(teacher.graph).graph))


# grids and sites


def test_weights_are_rounded_to_the_nearest_on_their_rows_grids():
    network = quantize_without_images(separable(), QuantizeConfig(weight_bits=3, weight_range="minmax", protocol="ait"))
    for layer in weight_layers(network.plan.folded.graph):
        weight, quantized = get_tensor(network.plan.folded.graph, layer.weight_key), network.weights[layer.name]
        scale, zero_point = minmax_weight_grid(weight, weight_format(3))
        torch.testing.assert_close(quantized.scale, scale)
        assert torch.equal(quantized.zero_point, zero_point.int())
        codes = (weight.flatten(1) / scale).round() + zero_point
        assert torch.equal(quantized.codes.flatten(1).float(), codes.clamp(0, 7))


def test_search_and_minmax_differ():
    networks = [
        quantize_without_images(separable(), QuantizeConfig(weight_bits=3, weight_range=kind))
        for kind in ("search", "minmax")
    ]
    assert not torch.equal(networks[0].weights["pointwise"].scale, networks[1].weights["pointwise"].scale)


def test_step_sizes_span_six_gamma():
    teacher = separable(activation=nn.ReLU)
    network = quantize_without_images(teacher, QuantizeConfig(activation_bits=4, protocol="ait", equalize=False))
    assert set(network.activations) == {"depthwise.input", "pointwise.input", "fc.input"}
    for name, norm in (("depthwise", "stem"), ("pointwise", "depthwise"), ("fc", "pointwise")):
        gamma = get_tensor(teacher.graph, f"{norm}_norm.weight").abs()
        high = float((get_tensor(teacher.graph, f"{norm}_norm.bias") + 6 * gamma).max())
        quantizer = network.activations[f"{name}.input"]
        assert quantizer.format == activation_format(4, signed=False)
        assert quantizer.step_size.item() == pytest.approx(high / 15, rel=1e-3)


def test_activation_below_zero_has_signed_codes():
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.conv(x))).mean((2, 3))

    quantizer = quantize_without_images(make_teacher("linear", Linear(), SPEC), QuantizeConfig()).activations
    assert quantizer["last.input"].format.signed and quantizer["last.input"].step_size > 0


def test_bits_follow_the_protocol(digits_teacher: Teacher):
    network = quantize_without_images(digits_teacher, QuantizeConfig(weight_bits=2, activation_bits=3))
    bits = {name: weight.format.bits for name, weight in network.weights.items()}
    assert bits == {name: 8 if name in ("conv1", "fc") else 2 for name in bits} and len(bits) == 10
    assert {name: a.format.bits for name, a in network.activations.items()} == {
        site.name: site.bits for site in network.plan.bits.activations
    }
    assert network.units == () and network.memory == {}


def test_graph_and_tensors_can_be_loaded_again():
    """What a loader does: the folded graph of other weights, given the clips and the tensors."""
    network = quantize_without_images(separable(), QuantizeConfig())
    wanted = student_of(network)(images())
    torch.manual_seed(99)
    graph = fold_batch_norms(separable(spread=1).graph).graph
    stored = named_tensors(network.plan.folded.graph)
    assert has_channel_clips(stored)
    add_channel_clips(graph)
    assert set(named_tensors(graph)) == set(stored)
    for key, value in stored.items():
        set_tensor(graph, key, value)
    student = insert_quantizers(graph, network.plan.bits, network.weights, network.activations).eval()
    assert torch.equal(student(images()), wanted)


def test_without_equalization_the_graph_has_no_clips():
    network = quantize_without_images(separable(), QuantizeConfig(equalize=False))
    assert not has_channel_clips(named_tensors(network.plan.folded.graph))
    assert network.plan.folded.graph.code == fold_batch_norms(separable().graph).graph.code


# edges


def test_teacher_is_left_alone_and_runs_repeat(digits_teacher: Teacher):
    before = {key: value.clone() for key, value in named_tensors(digits_teacher.graph).items()}
    networks = [quantize_without_images(digits_teacher, QuantizeConfig()) for _ in range(2)]
    assert all(torch.equal(value, before[key]) for key, value in named_tensors(digits_teacher.graph).items())
    for name, weight in networks[0].weights.items():
        again = networks[1].weights[name]
        assert torch.equal(weight.codes, again.codes) and torch.equal(weight.scale, again.scale)


def test_progress(digits_teacher: Teacher):
    events: list[Event] = []
    quantize_without_images(digits_teacher, QuantizeConfig(), report=events.append)
    assert events[0] == StageStarted("quantize", 10, "layers") and events[-1] == StageFinished("quantize")
    assert [event.done for event in events if isinstance(event, Advanced)] == list(range(1, 11))


def test_network_without_batch_norms_names_the_layer():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu(self.first(x))).mean((2, 3))

    with pytest.raises(InputError, match=r"'second.input'.*batch norms.*--preset minmax"):
        quantize_without_images(make_teacher("bare", Bare(), SPEC), QuantizeConfig())


def test_unknown_operation_names_the_layer():
    with pytest.raises(InputError, match=r"'depthwise\.input'"):
        quantize_without_images(separable(activation=nn.SiLU), QuantizeConfig())


def test_unknown_protocol_is_a_usage_error(digits_teacher: Teacher):
    with pytest.raises(UsageError, match="genie"):
        quantize_without_images(digits_teacher, QuantizeConfig(protocol="geni"))
