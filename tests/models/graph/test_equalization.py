"""Cross-layer equalization: what is computed stays, ranges meet, and which layers are pairs."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from genie_cli.config import InputSpec
from genie_cli.models.graph.equalization import (
    EqualizedGraph,
    add_channel_clips,
    equalize,
    has_channel_clips,
    layer_pairs,
)
from genie_cli.models.graph.folding import FoldedGraph, fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor, named_tensors, set_tensor
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.student.tensor_names import tensor_names

SPEC = InputSpec(num_channels=3, size=8, mean=(0.0,) * 3, std=(1.0,) * 3)


def images(spec: InputSpec = SPEC, count: int = 4) -> Tensor:
    shape = (count, spec.num_channels, spec.size, spec.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5)) * 2


def randomize(network: nn.Module, seed: int = 0, spread: float = 4.0) -> nn.Module:
    """Random batch norms and weights whose channels differ by factors of up to 2^(2 spread)."""
    draws = torch.Generator().manual_seed(seed)

    def factors(count: int) -> Tensor:
        return 2 ** ((torch.rand(count, generator=draws) * 2 - 1) * spread)

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.data
            weight.copy_(torch.randn(weight.shape, generator=draws) / weight[0].numel() ** 0.5)
            weight *= factors(len(weight)).view(-1, *[1] * (weight.dim() - 1))
            if module.bias is not None:
                module.bias.data = torch.randn(len(weight), generator=draws)
        if isinstance(module, nn.BatchNorm2d):
            count = module.num_features
            module.weight.data = torch.randn(count, generator=draws) * factors(count) * 3
            module.bias.data = torch.randn(count, generator=draws) * 2
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(images(count=32))  # running statistics
    return network


def fold(network: nn.Module, spec: InputSpec = SPEC) -> FoldedGraph:
    return fold_batch_norms(make_teacher("network", network, spec).graph)


def assert_same_function(folded: FoldedGraph, equalized: EqualizedGraph, x: Tensor) -> None:
    wanted, found = folded.graph(x), equalized.folded.graph(x)
    assert torch.isfinite(wanted).all() and float(wanted.std()) > 0
    error = float((found - wanted).double().norm() / wanted.double().norm())
    assert error < 1e-5


def names(folded: FoldedGraph | fx.GraphModule) -> list[tuple[str, str]]:
    graph = folded.graph if isinstance(folded, FoldedGraph) else folded
    return [(pair.first.name, pair.second.name) for pair in layer_pairs(graph)]


def ranges(graph: fx.GraphModule) -> list[tuple[np.ndarray, np.ndarray]]:
    """Largest weight of each channel in the first and second layer of every pair, loop by loop."""
    found = []
    for pair in layer_pairs(graph):
        first, second = (get_tensor(graph, layer.weight_key).numpy() for layer in (pair.first, pair.second))
        columns = []
        per_group = len(first) // pair.second.groups
        rows_a_group = len(second) // pair.second.groups
        for channel in range(len(first)):
            group, column = divmod(channel, per_group)
            rows = second[group * rows_a_group : (group + 1) * rows_a_group]
            entries = rows[:, column * pair.repeats : (column + 1) * pair.repeats]
            columns.append(np.abs(entries).max())
        found.append((np.array([np.abs(row).max() for row in first]), np.array(columns)))
    return found


class Inverted(nn.Module):
    """MobileNetV2's pieces: expansion, depthwise and projection, ReLU6 between them, a residual."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(6)
        self.expand = nn.Conv2d(6, 12, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, 1, 1, groups=12, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(12)
        self.project = nn.Conv2d(12, 6, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 8, 1, bias=False)
        self.head_norm = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem_norm(self.stem(x)))
        y = self.act(self.expand_norm(self.expand(x)))
        y = self.act(self.depthwise_norm(self.depthwise(y)))
        x = x + self.project_norm(self.project(y))
        x = self.pool(self.act(self.head_norm(self.head(x))))
        return self.fc(F.dropout(x.flatten(1), 0.2, self.training))


class Chain(nn.Module):
    """Modules one after the other."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


class EveryOther(nn.Module):
    """Every second pixel, as the shortcuts of CIFAR's residual networks take."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::2, ::2]


class Head(nn.Module):
    """Mean over the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


# the network stays


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.ReLU, lambda: nn.Hardtanh(-0.5, 3.0), lambda: nn.LeakyReLU(0.2)])
def test_depthwise_residual_network_computes_the_same(activation: Any):
    folded = fold(randomize(Inverted(activation), seed=1))
    equalized = equalize(folded)
    assert names(folded) == [("expand", "depthwise"), ("depthwise", "project"), ("head", "fc")]
    assert all(float(scale.log2().abs().max()) > 1 for scale in equalized.scales.values())
    assert_same_function(folded, equalized, images())


@torch.no_grad()
def test_clips_are_hit_and_are_not():
    """The network above would also pass with bounds that no value reaches."""
    folded = fold(randomize(Inverted(), seed=1))
    values: dict[str, Tensor] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            values[n.name] = super().run_node(n)
            return values[n.name]

    Recorder(folded.graph).run(images())
    clips = [clip.node.name for pair in layer_pairs(folded.graph) for clip in pair.clips]
    shares = [float((values[name] == 6).float().mean()) for name in clips]
    assert len(shares) == 3 and all(share < 0.9 for share in shares) and sum(share > 0.02 for share in shares) >= 2


@pytest.mark.parametrize(
    "between",
    [
        (nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(1), nn.Linear(6 * 9, 4)),
        (nn.ReLU6(), nn.AvgPool2d(3, 2, 1), nn.Flatten(1), nn.Linear(6 * 9, 4)),
        (
            nn.ReLU6(),
            nn.ZeroPad2d((0, 1, 0, 1)),
            nn.Conv2d(6, 6, 3, 2, groups=6),
            nn.ReLU6(),
            nn.Conv2d(6, 4, 3),
            Head(),
        ),
        (nn.ReLU6(), EveryOther(), nn.Conv2d(6, 4, 3), Head()),
        (nn.PReLU(6), nn.AdaptiveAvgPool2d(2), nn.Flatten(1), nn.Linear(6 * 4, 4)),
        (nn.AdaptiveAvgPool2d(2), nn.Flatten(1), nn.ReLU6(), nn.Linear(6 * 4, 4)),
        (nn.ReLU(), nn.Conv2d(6, 4, 3, padding="same", groups=2), nn.ReLU6(), nn.Flatten(1), nn.Linear(4 * 36, 4)),
        (nn.Identity(), nn.Conv2d(6, 6, 3, groups=6), nn.Dropout(), nn.Conv2d(6, 9, 1, groups=3), nn.Flatten(1)),
        (nn.LeakyReLU(), nn.Conv2d(6, 12, 3, groups=6), nn.ReLU(), nn.Conv2d(12, 4, 1, bias=False), nn.Flatten(1)),
    ],
    ids=[
        "max",
        "avg-clip",
        "zero-pad",
        "slice",
        "prelu",
        "clip-behind-flatten",
        "grouped",
        "identity",
        "depth-multiplier",
    ],
)
def test_operations_between_layers(between: tuple[nn.Module, ...]):
    network = Chain(nn.Conv2d(3, 6, 3), *copy.deepcopy(between))
    folded = fold(randomize(network))
    layers = [f"parts.{i}" for i, part in enumerate(network.parts) if isinstance(part, nn.Conv2d | nn.Linear)]
    assert names(folded) == list(itertools.pairwise(layers))
    equalized = equalize(folded)
    assert equalized.scales and all((scale != 1).any() for scale in equalized.scales.values())
    assert_same_function(folded, equalized, images())


@settings(max_examples=10, deadline=None)
@given(
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    kinds=st.lists(st.sampled_from(["relu", "relu6", "leaky", "clamp_max", "none"]), min_size=3, max_size=3),
    depthwise=st.lists(st.booleans(), min_size=3, max_size=3),
    spread=st.floats(0, 8),
    seed=st.integers(0, 1000),
)
def test_random_chains_compute_the_same(
    widths: list[int], kinds: list[str], depthwise: list[bool], spread: float, seed: int
):
    class ClampMax(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clamp(max=1.5)

    makers: dict[str, Any] = {
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "leaky": nn.LeakyReLU,
        "clamp_max": ClampMax,
        "none": nn.Identity,
    }
    modules: list[nn.Module] = []
    channels = 3
    for width, kind, is_depthwise in zip(widths, kinds, depthwise, strict=False):
        modules += [nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width), makers[kind]()]
        if is_depthwise:
            modules += [nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width), makers[kind]()]
        channels = width
    network = Chain(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, 3))
    randomize(network, seed, spread)
    # where a clip makes a channel constant, its batch norm makes hundreds of float32's rounding of the bounds
    variances = [module.running_var for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assume(all(float(variance.min()) > 1e-3 for variance in variances))
    folded = fold(network).graph.double()
    before = FoldedGraph(folded, {}, {})
    wanted, found = folded(images().double()), equalize(before).folded.graph(images().double())
    # the bounds are stored in float32
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_embedded_network(digits_teacher: Teacher):
    folded = fold_batch_norms(digits_teacher.graph)
    assert names(folded) == [(f"layer{i}.0.conv1", f"layer{i}.0.conv2") for i in (1, 2, 3)]
    assert_same_function(folded, equalize(folded), images(digits_teacher.input))


def test_given_graph_is_left_alone():
    folded = fold(randomize(Inverted()))
    code, before = folded.graph.code, {key: value.clone() for key, value in named_tensors(folded.graph).items()}
    equalize(folded)
    assert folded.graph.code == code
    assert all(torch.equal(value, before[key]) for key, value in named_tensors(folded.graph).items())


# the scales


def test_two_layers_by_hand():
    """s = sqrt(r1 / r2): weights, bias and bound in NumPy."""
    network = randomize(Chain(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 2, 1), nn.Flatten(1)), seed=3)
    first, second = network.parts[0], network.parts[2]
    equalized = equalize(fold(network))
    r1 = np.abs(first.weight.detach().numpy()).max((1, 2, 3))
    r2 = np.abs(second.weight.detach().numpy()).max((0, 2, 3))
    scale = np.sqrt(r1 / r2)
    found = {key: value.numpy() for key, value in named_tensors(equalized.folded.graph).items()}
    column = scale.reshape(-1, 1, 1)
    np.testing.assert_allclose(equalized.scales["parts.0"].numpy(), scale, rtol=1e-6)
    np.testing.assert_allclose(found["parts.0.weight"], first.weight.detach().numpy() / column[..., None], rtol=1e-6)
    np.testing.assert_allclose(found["parts.0.bias"], first.bias.detach().numpy() / scale, rtol=1e-6)
    np.testing.assert_allclose(found["parts.2.weight"], second.weight.detach().numpy() * column, rtol=1e-6)
    np.testing.assert_allclose(found["parts.2.bias"], second.bias.detach().numpy())
    np.testing.assert_allclose(found["channel_clips.parts.0.clip0.high"], 6 / column, rtol=1e-6)
    np.testing.assert_allclose(found["channel_clips.parts.0.clip0.low"], 0 * column)


def test_ranges_of_all_pairs_meet():
    network = Chain(
        nn.Conv2d(3, 6, 1),
        nn.ReLU6(),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Flatten(1),
        nn.Linear(8 * 16, 4),
    )
    folded = fold(randomize(network, seed=2))
    pairs = ranges(folded.graph)
    assert len(pairs) == 4 and all(not np.allclose(first, second, rtol=0.5) for first, second in pairs)
    graph = equalize(folded).folded.graph
    # behind the clips, pairs are no longer seen: the bounds are tensors now
    for key in [key for key in named_tensors(graph) if has_channel_clips([key])]:
        assert key.startswith("channel_clips.parts.0.clip0.")
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.clamp.Tensor:
            node.target, node.args = torch.ops.aten.relu.default, node.args[:1]
    for first, second in ranges(graph):
        np.testing.assert_allclose(first, second, rtol=1e-3)


def test_equalizing_twice_changes_nothing():
    folded = fold(randomize(Inverted(nn.ReLU), spread=1))
    once = equalize(folded)
    for scale in equalize(once.folded).scales.values():
        torch.testing.assert_close(scale, torch.ones_like(scale), rtol=0, atol=1e-3)


@pytest.mark.parametrize("side", ["row", "column", "tiny"])
def test_dead_channels_keep_their_scale(side: str):
    network = randomize(Chain(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(1)))
    with torch.no_grad():
        if side == "row":
            network.parts[0].weight[1] = 0
        elif side == "column":
            network.parts[2].weight[:, 1] = 0
        else:
            network.parts[0].weight[1] = 1e-12
    folded = fold(network)
    equalized = equalize(folded)
    scale = equalized.scales["parts.0"]
    assert float(scale[1]) == 1 and bool((scale[[0, 2, 3]] != 1).all())
    assert_same_function(folded, equalized, images())


def test_a_dead_layer_is_left_as_it_is():
    network = randomize(Chain(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(1)))
    network.parts[2].weight.data.zero_()
    scale = equalize(fold(network)).scales["parts.0"]
    assert torch.equal(scale, torch.ones_like(scale))


def test_multipliers_lead_from_the_checkpoint_or_are_dropped():
    teacher = make_teacher("network", randomize(Inverted(), seed=4), SPEC)
    folded = fold_batch_norms(teacher.graph)
    equalized = equalize(folded)
    assert set(folded.multipliers) == {"stem", "expand", "depthwise", "project", "head"}
    assert set(equalized.folded.multipliers) == {"stem", "expand", "head"}
    for name, multiplier in equalized.folded.multipliers.items():
        checkpoint = get_tensor(teacher.graph, f"{name}.weight")
        weight = get_tensor(equalized.folded.graph, f"{name}.weight")
        torch.testing.assert_close(multiplier.view(-1, 1, 1, 1) * checkpoint, weight, rtol=1e-5, atol=1e-7)


# pairs


class Branching(nn.Module):
    """One place after the other where two layers may not be rescaled against each other."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.other = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.kind == "sum":
            y = F.relu(y + self.other(x))
        elif self.kind == "two readers":
            return (self.second(F.relu(y)) + y).mean((2, 3))
        elif self.kind == "two layers":
            return (self.second(y) + F.conv2d(y, self.second.weight)).mean((2, 3))
        elif self.kind == "sigmoid":
            y = torch.sigmoid(y)
        elif self.kind == "silu":
            y = F.silu(y)
        elif self.kind == "norm":
            y = F.relu(self.norm(F.relu(y)))
        elif self.kind == "offset":
            y = F.relu(y) + 1
        elif self.kind == "mean of channels":
            y = y.mean(1, keepdim=True).expand(-1, 4, -1, -1)
        elif self.kind == "columns":  # the linear layer reads along the width, not the channels
            return self.fc(y.flatten(2, 3)[..., :32]).mean(2)
        elif self.kind == "cat":
            y = torch.cat([y[:, :2], self.other(x)[:, :2]], 1)
        elif self.kind == "padded channels":
            y = F.pad(y[:, :3], (0, 0, 0, 0, 1, 0))
        elif self.kind == "ones around":
            y = F.pad(y, (1, 1, 1, 1), value=1.0)
        elif self.kind == "shuffle":
            y = y.flip(1)
        elif self.kind == "output":
            return y.mean((2, 3))
        return self.second(y).mean((2, 3))


@pytest.mark.parametrize(
    "kind",
    [
        "sum",
        "two readers",
        "two layers",
        "sigmoid",
        "silu",
        "norm",
        "offset",
        "mean of channels",
        "columns",
        "cat",
        "padded channels",
        "ones around",
        "shuffle",
        "output",
    ],
)
def test_no_pair_across(kind: str):
    folded = fold(randomize(Branching(kind)))
    assert not layer_pairs(folded.graph)
    equalized = equalize(folded)
    assert not equalized.scales
    found = named_tensors(equalized.folded.graph)
    assert all(torch.equal(value, found[key]) for key, value in named_tensors(folded.graph).items())


def test_linear_layers_on_tokens():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            y = F.hardtanh(self.second(F.relu(self.first(tokens))), -2, 2)
            return self.third(y.mean(1))

    folded = fold(randomize(Tokens()))
    assert names(folded) == [("first", "second"), ("second", "third")]
    assert_same_function(folded, equalize(folded), images())


def test_one_dimensional_convolutions():
    class Signal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv1d(3, 6, 3), nn.Conv1d(6, 4, 3, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu6(self.first(x.flatten(2)))).mean(2)

    folded = fold(Signal())
    assert names(folded) == [("first", "second")]
    assert_same_function(folded, equalize(folded), images())


# clips of a stored network


def test_graph_of_an_equalized_network_comes_back_without_its_weights():
    equalized = equalize(fold(randomize(Inverted(), seed=1))).folded.graph
    stored = named_tensors(equalized)
    assert has_channel_clips(stored)
    again = fold(randomize(Inverted(), seed=9)).graph
    assert not has_channel_clips(named_tensors(again))
    before = again(images())
    add_channel_clips(again)
    assert torch.equal(again(images()), before)
    assert {key: value.shape for key, value in named_tensors(again).items()} == {
        key: value.shape for key, value in stored.items()
    }
    assert {name: node.name for name, node in tensor_names(again).items()} == {
        name: node.name for name, node in tensor_names(equalized).items()
    }
    for key, value in stored.items():
        set_tensor(again, key, value)
    assert torch.equal(again(images()), equalized(images()))


def test_graph_without_clips_needs_none():
    folded = fold(randomize(Inverted(nn.ReLU), spread=1))
    equalized = equalize(folded).folded.graph
    assert not has_channel_clips(named_tensors(equalized)) and equalized.code == folded.graph.code
    assert [layer.name for layer in weight_layers(equalized)] == [layer.name for layer in weight_layers(folded.graph)]
