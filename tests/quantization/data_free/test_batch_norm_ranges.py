"""Statistics without images: closed forms against quadrature, and networks against what they really do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from genie_cli.config import InputSpec
from genie_cli.data.digits import split
from genie_cli.data.normalize import normalize_pixels
from genie_cli.data.pixel_prior import PixelPrior
from genie_cli.models.graph.equalization import equalize
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.quantization.data_free.batch_norm_ranges import (
    ActivationStatistics,
    ChannelStatistics,
    activation_statistics,
    add,
    batch_norm_outputs,
    batch_norm_tensors,
    clip,
    leaky,
    normal,
)

SPEC = InputSpec(num_channels=3, size=8, mean=(0.0,) * 3, std=(1.0,) * 3)
STANDARD = PixelPrior((0.0,) * 3, (1.0,) * 3)
INFINITY = math.inf


def one(mean: float, std: float) -> ChannelStatistics:
    return normal(torch.tensor([mean], dtype=torch.float64), torch.tensor([std], dtype=torch.float64))


def bound(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def quadrature(mean: float, std: float, function: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """Mean and variance of function(x) for a normal x: midpoints of 400,000 slices of +-12 std."""
    edges = np.linspace(-12, 12, 400_001)
    z = (edges[1:] + edges[:-1]) / 2
    weight = np.exp(-z * z / 2)
    weight /= weight.sum()
    y = function(mean + std * z)
    expected = float(weight @ y)
    return expected, float(weight @ (y - expected) ** 2)


def assert_moments(x: ChannelStatistics, wanted: tuple[float, float], scale: float) -> None:
    assert float(x.mean) == pytest.approx(wanted[0], abs=1e-6 * scale)
    assert float(x.var) == pytest.approx(wanted[1], abs=1e-6 * scale**2)


# closed forms


@settings(max_examples=60, deadline=None)
@given(
    mean=st.floats(-10, 10),
    std=st.floats(0.01, 5),
    low=st.one_of(st.just(-INFINITY), st.floats(-5, 3)),
    width=st.one_of(st.just(INFINITY), st.floats(0.1, 10)),
)
def test_clipped_normal(mean: float, std: float, low: float, width: float):
    high = INFINITY if low == -INFINITY and width == INFINITY else max(low, -5) + width
    found = clip(one(mean, std), bound(low), bound(high))
    assert_moments(found, quadrature(mean, std, lambda x: np.clip(x, low, high)), scale=abs(mean) + std + 10)
    ends = np.clip([mean - 6 * std, mean + 6 * std], low, high)
    assert found.range == pytest.approx(tuple(ends))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-2.0, 1.0), (5.5, 2.0), (1000.0, 1.0), (-30.0, 1.0)])
def test_relu6_against_samples(mean: float, std: float):
    found = clip(one(mean, std), bound(0), bound(6))
    samples = np.clip(np.random.default_rng(0).normal(mean, std, 1_000_000), 0, 6)
    assert float(found.mean) == pytest.approx(samples.mean(), abs=5e-3)
    assert float(found.var) == pytest.approx(samples.var(), abs=5e-3)


def test_relu_of_a_standard_normal():
    found = clip(one(0, 1), bound(0), bound(INFINITY))
    assert float(found.mean) == pytest.approx(1 / math.sqrt(2 * math.pi))
    assert float(found.var) == pytest.approx(0.5 - 1 / (2 * math.pi))
    assert found.range == (0, 6)


@pytest.mark.parametrize("value", [-1.0, 0.0, 2.0, 9.0])
def test_constant_channels(value: float):
    found = clip(one(value, 0), bound(0), bound(6))
    assert float(found.mean) == pytest.approx(min(max(value, 0), 6)) and float(found.var) == pytest.approx(0)
    assert found.range == (min(max(value, 0), 6),) * 2


def test_clip_leaves_alone_what_lies_within():
    """Also where the distribution is no normal one: ReLU after ReLU."""
    once = clip(one(0.3, 1), bound(0), bound(INFINITY))
    twice = clip(once, bound(0), bound(INFINITY))
    assert all(torch.equal(getattr(once, name), getattr(twice, name)) for name in ("mean", "var", "low", "high"))


@settings(max_examples=40, deadline=None)
@given(mean=st.floats(-5, 5), std=st.floats(0.01, 5), slope=st.floats(0, 2))
def test_leaky_relu(mean: float, std: float, slope: float):
    found = leaky(one(mean, std), bound(slope))

    def function(x: np.ndarray) -> np.ndarray:
        return np.where(x > 0, x, slope * x)

    assert_moments(found, quadrature(mean, std, function), scale=3 * (abs(mean) + std))
    assert found.range == pytest.approx(tuple(function(np.array([mean - 6 * std, mean + 6 * std]))))


def test_sum_of_normal_channels():
    found = add(one(1, 3), one(-2, 4))
    assert (float(found.mean), float(found.var)) == pytest.approx((-1, 25))
    assert found.range == pytest.approx((-1 - 30, -1 + 30))


def test_sum_keeps_the_long_side_of_a_relu():
    """A channel that is nearly always 0 has a tiny variance and still reaches far up, never below 0."""
    rare = clip(one(-3, 1), bound(0), bound(INFINITY))
    found = add(rare, rare)
    assert float(rare.mean + 6 * rare.var.sqrt()) < 0.5
    assert found.range[0] >= 0 and 3 < found.range[1] <= 6


def test_division():
    found = normal(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])) / torch.tensor([2.0, 0.5])
    wanted = normal(torch.tensor([0.5, 4.0]), torch.tensor([1.5, 8.0]))
    for name in ("mean", "var", "low", "high"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name))


# networks


class Net(nn.Module):
    """A convolution with batch norm, some operation, and a last layer whose input is asked for."""

    def __init__(self, middle: Callable[..., Tensor], channels: int = 4) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.other, self.other_norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.bare = nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(channels, 2)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        parts = {
            "a": lambda: self.norm(self.conv(x)),
            "b": lambda: self.other_norm(self.other(x.flip(2))),  # of other pixels: independent of a
            "bare": lambda: self.bare(x),
            "x": lambda: x,
        }
        wanted = self.middle.__code__.co_varnames[: self.middle.__code__.co_argcount]
        y = self.middle(*(parts[name]() for name in wanted))
        return self.fc(y if y.dim() == 2 else y.mean((2, 3)))


def build(middle: Callable[..., Tensor], channels: int = 4) -> Net:
    torch.manual_seed(0)
    network = Net(middle, channels)
    for norm in (network.norm, network.other_norm):
        norm.weight.data, norm.bias.data = torch.tensor([-1.5, 0.5, 1.0, 2.0]), torch.randn(4)
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(512, 3, 8, 8))
    return network


def statistics(network: nn.Module) -> tuple[fx.GraphModule, dict[str, ActivationStatistics]]:
    teacher = make_teacher("network", network, SPEC)
    folded = fold_batch_norms(teacher.graph)
    tensors = batch_norm_tensors(teacher.graph, folded, {})
    return folded.graph, activation_statistics(folded.graph, batch_norm_outputs(teacher.graph), STANDARD, tensors)


def at_input_of(network: nn.Module, layer: str) -> ChannelStatistics | None:
    folded, found = statistics(network)
    node = next(own.node for own in weight_layers(folded) if own.name == layer)
    own = found.get(str(node.args[0]))
    return None if own is None else own.channels


@torch.no_grad()
def values_before(network: nn.Module, layer: str, x: Tensor) -> Tensor:
    """The layer's input as ``[C, n]``."""
    seen: list[Tensor] = []
    handle = network.eval().get_submodule(layer).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network(x)
    handle.remove()
    return seen[0].transpose(0, 1).flatten(1)


KNOWN: dict[str, tuple[Callable[..., Tensor], int]] = {
    "relu": (lambda a: F.relu(a), 4),
    "clamp": (lambda a: a.clamp(-0.3, 0.8), 4),
    "clamp_max": (lambda a: a.clamp(max=0.5), 4),
    "leaky": (lambda a: F.leaky_relu(a, 0.3), 4),
    "add": (lambda a, b: F.relu(a + b), 4),
    "cat": (lambda a, b: torch.cat([F.relu(a), b], 1), 8),
    "cat with the images": (lambda a, x: torch.cat([a, x], 1), 7),
    "padded channels": (lambda a: F.pad(F.relu(a)[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)), 7),
    "some channels": (lambda a: a[:, 1:4:2], 2),
    "borders": (lambda a: F.pad(a.clamp(min=-1), (0, 1, 0, 0))[:, :, :, :8], 4),
    "average": (lambda a: F.avg_pool2d(F.relu(a), 2), 4),
    "flatten": (lambda a: F.adaptive_avg_pool2d(F.relu(a), 2).flatten(1), 16),
    "flatten pixels": (lambda a: F.relu(a).flatten(1), 256),
}


@pytest.mark.parametrize("name", KNOWN)
def test_mean_of_the_last_input(name: str):
    """Of normal images, whose batch norms put out normal values."""
    network = build(*KNOWN[name])
    found = at_input_of(network, "fc")
    measured = values_before(network, "fc", torch.randn(2000, 3, 8, 8))
    assert found is not None
    torch.testing.assert_close(found.mean.float(), measured.mean(1), rtol=0, atol=0.1)
    assert found.range[0] - 1e-6 <= float(measured.amin()) and float(measured.amax()) <= found.range[1] + 1e-6


def test_variance_of_features_without_pooling():
    network = build(*KNOWN["flatten pixels"])
    found = at_input_of(network, "fc")
    measured = values_before(network, "fc", torch.randn(4000, 3, 8, 8))
    assert found is not None
    torch.testing.assert_close(found.var.float(), measured.var(1), rtol=0.2, atol=0.01)


UNKNOWN: dict[str, tuple[Callable[..., Tensor], int]] = {
    "no norm": (lambda bare: F.relu(bare), 4),
    "sum with no norm": (lambda a, bare: a + bare, 4),
    "cat with no norm": (lambda a, bare: torch.cat([a, bare], 1), 8),
    "cat of rows": (lambda a, b: torch.cat([a, b], 2), 4),
    "sigmoid": (lambda a: torch.sigmoid(a), 4),
    "product": (lambda a, b: a * b, 4),
    "scaled sum": (lambda a, b: torch.add(a, b, alpha=2), 4),
    "offset": (lambda a: a + 1, 4),
    "channels pooled": (lambda a: a.mean(1, keepdim=True).expand(-1, 4, -1, -1), 4),
    "padded with ones": (lambda a: F.pad(a, (0, 1, 0, 1), value=1.0), 4),
    "padded on two sides": (lambda a: F.pad(a, (0, 1, 0, 0, 0, 1)), 5),
    "negative slope": (lambda a: F.leaky_relu(a, -0.5), 4),
    "bounds of its own": (lambda a: torch.clamp(a, max=torch.arange(8.0).abs()), 4),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_statistics(name: str):
    assert at_input_of(build(*UNKNOWN[name]), "fc") is None


def test_range_is_six_gamma_over_the_channels():
    """Section 5: [min (beta - 6 gamma), max (beta + 6 gamma)], with |gamma| where it is negative, cut at 0 by ReLU."""
    network = build(lambda a: a)
    gamma, beta = network.norm.weight.detach().abs().numpy(), network.norm.bias.detach().numpy()
    assert bool((network.norm.weight < 0).any())
    network.norm.eps = 1e-12
    wanted = float((beta - 6 * gamma).min()), float((beta + 6 * gamma).max())
    found = at_input_of(network, "fc")
    assert found is not None and found.range == pytest.approx(wanted, rel=1e-5)
    network.middle = lambda a: F.relu(a)
    found = at_input_of(network, "fc")
    assert found is not None and found.range == pytest.approx((0, wanted[1]), rel=1e-5)


def test_padding_by_zeros_widens_the_range_and_keeps_the_mean():
    network = build(lambda a: F.pad(a.clamp(0.25, 0.75), (0, 1, 0, 1)))
    found, inner = at_input_of(network, "fc"), at_input_of(build(lambda a: a.clamp(0.25, 0.75)), "fc")
    assert found is not None and inner is not None
    assert inner.range == (0.25, 0.75) and found.range == (0, 0.75) and torch.equal(found.mean, inner.mean)


def test_channel_without_variance_is_constant():
    network = build(lambda a: a)
    network.norm.running_var[2] = 0
    found = at_input_of(network, "fc")
    assert found is not None
    assert float(found.var[2]) == 0 and float(found.low[2]) == pytest.approx(network.norm.bias[2].item())


def test_norms_that_are_not_folded_count_too():
    """Pre-activation: the norm follows a sum that is not known."""

    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.conv = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
            self.norm.bias.data = torch.tensor([-1.0, 0.0, 1.0, 2.0])

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return (self.conv(F.relu(self.norm(x * x))) + x[:, :2]).mean((2, 3))

    found = at_input_of(PreActivation(), "conv")
    assert found is not None
    wanted = [quadrature(mean, 1, lambda x: np.maximum(x, 0)) for mean in (-1.0, 0.0, 1.0, 2.0)]
    np.testing.assert_allclose(found.mean.numpy(), [mean for mean, _ in wanted], rtol=1e-4)
    np.testing.assert_allclose(found.var.numpy(), [var for _, var in wanted], rtol=1e-4)


class NormBehindActivation(nn.Module):
    """The norm moves into the second layer, and the two layers are equalized."""

    def __init__(self, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.activation = activation()
        self.first, self.norm, self.second = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self.norm.running_mean, self.norm.running_var = torch.tensor([0.5, 1, 2, 3]), torch.tensor([1.0, 4, 9, 16])

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.activation(self.first(x)))).mean((2, 3))


def test_a_norm_that_moved_says_what_came_before_it():
    found = at_input_of(NormBehindActivation(), "second")
    assert found is not None
    assert found.mean.tolist() == [0.5, 1, 2, 3] and found.var.tolist() == [1, 4, 9, 16]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, lambda: nn.PReLU(4)], ids=["relu", "relu6", "prelu"])
def test_a_norm_that_moved_says_it_of_an_equalized_tensor_too(activation: Callable[[], nn.Module]):
    teacher = make_teacher("network", NormBehindActivation(activation), SPEC)
    equalized = equalize(fold_batch_norms(teacher.graph))
    (scale,) = equalized.scales.values()
    assert not torch.allclose(scale, torch.ones_like(scale))
    (found,) = batch_norm_tensors(teacher.graph, equalized.folded, equalized.scales).values()
    torch.testing.assert_close(found.mean * scale, torch.tensor([0.5, 1, 2, 3]).double())
    torch.testing.assert_close(found.var * scale.square(), torch.tensor([1.0, 4, 9, 16]).double())


def test_images_have_mean_zero():
    found = at_input_of(build(lambda a: a), "conv")
    assert found is not None and torch.equal(found.mean, torch.zeros(3, dtype=torch.float64))


def test_equalized_statistics_are_those_of_the_equalized_tensors():
    """Behind ReLU6 too: divided by s, they pass the per-channel clip as the ones before pass the plain one."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
            self.norm.weight.data, self.norm.bias.data = torch.rand(4) * 9, torch.randn(4) * 3

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.relu6(self.norm(self.conv(x)))).mean((2, 3))

    torch.manual_seed(1)
    teacher = make_teacher("two", Two(), SPEC)
    folded = fold_batch_norms(teacher.graph)
    outputs = batch_norm_outputs(teacher.graph)
    equalized = equalize(folded)
    scale = equalized.scales["conv"]
    assert float(scale.log().abs().max()) > 0.3
    plain = activation_statistics(folded.graph, outputs, STANDARD)
    found = activation_statistics(equalized.folded.graph, {"conv": outputs["conv"] / scale}, STANDARD)
    name = str(weight_layers(folded.graph)[1].node.args[0])
    for field in ("mean", "var", "low", "high"):
        wanted = getattr(plain[name].channels / scale, field)
        torch.testing.assert_close(getattr(found[name].channels, field), wanted, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_embedded_network_against_its_own_data(digits_teacher: Teacher):
    folded = fold_batch_norms(digits_teacher.graph).graph
    found = activation_statistics(folded, batch_norm_outputs(digits_teacher.graph), PixelPrior((0.0,), (1.0,)))
    images = normalize_pixels(split(train=True)[0], digits_teacher.input)
    measured: dict[str, Tensor] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor) and n.op == "call_function":
                measured[n.name] = value.transpose(0, 1).flatten(1)
            return value

    Recorder(folded).run(images)
    sources = {str(layer.node.args[0]): layer.name for layer in weight_layers(folded)[1:]}
    assert set(sources) <= set(found)
    for name in sources:
        channels = found[name].channels
        spread = float(measured[name].std())
        assert float((channels.mean - measured[name].mean(1)).abs().mean()) < 0.25 * spread, name
        assert channels.range[0] == 0 and float(measured[name].amax()) <= 1.2 * channels.range[1], name
