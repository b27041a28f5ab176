"""Small networks written to be awkward: what capture, folding, cuts and protocols make of each."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from genie_cli.config import InputSpec
from genie_cli.errors import DeviceError, InputError
from genie_cli.models.graph.affine_map import affine_maps
from genie_cli.models.graph.batch_norm import batch_norm_sites
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.cuts import cut_points, data_nodes
from genie_cli.models.graph.folding import FoldedGraph, fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.subgraph import extract
from genie_cli.models.graph.tensors import get_tensor, named_tensors
from genie_cli.quantization.units.partition import reconstruction_units
from genie_cli.student.bit_assignment import assign_bits
from genie_cli.student.bit_plan import ActivationSite, BitPlan
from genie_cli.student.build import insert_quantizers
from genie_cli.student.formats import weight_format
from genie_cli.student.grid import minmax_weight_grid, quantize_weight, search_weight_grid
from genie_cli.student.protocol import PROTOCOLS
from genie_cli.student.tensor_names import tensor_names

SPEC = InputSpec(size=8)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def randomize(network: nn.Module) -> nn.Module:
    """Batch norms that are far from the identity."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


def fold(network: nn.Module, images: Tensor) -> FoldedGraph:
    """Capture and fold; both must compute what the network does, at this batch size and at 1."""
    randomize(network)
    with torch.no_grad():
        expected = network(images.clone())
    captured = capture(network, SPEC)
    folded = fold_batch_norms(captured)
    for graph in (captured, folded.graph):
        for batch in (images, images[:1]):
            torch.testing.assert_close(graph(batch), expected[: len(batch)], rtol=1e-4, atol=1e-5)
    return folded


def layer_names(folded: FoldedGraph) -> list[str]:
    return [layer.name for layer in weight_layers(folded.graph)]


def sites_of(folded: FoldedGraph, protocol: str = "ait") -> dict[str, int]:
    return {site.name: site.bits for site in assign_bits(folded.graph, PROTOCOLS[protocol], 4, 4).activations}


def unit_names(folded: FoldedGraph) -> list[str]:
    return [unit.name for unit in reconstruction_units(folded.graph)]


class Net(nn.Module):
    """conv 3->4, whatever `body` does, mean, linear 4->5."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.fc = nn.Linear(4, 5)

    def body(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


# --- folding


class FunctionalBatchNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 0.5)
        self.gain = nn.Parameter(torch.randn(4))

    def body(self, x: Tensor) -> Tensor:
        return F.relu(F.batch_norm(self.conv(x), self.mean, self.var, self.gain, eps=1e-3))


def test_functional_batch_norm_is_found_and_folded(images: Tensor) -> None:
    network = FunctionalBatchNorm()
    (site,) = batch_norm_sites(capture(network, SPEC))
    assert site.eps == 1e-3
    assert site.bias.eq(0).all()
    folded = fold(network, images)
    torch.testing.assert_close(folded.multipliers["conv"], network.gain.detach() / (network.var + 1e-3).sqrt())
    assert set(named_tensors(folded.graph)) == {"conv.weight", "conv.bias", "fc.weight", "fc.bias"}


class ConvWithBias(Net):
    def body(self, x: Tensor) -> Tensor:
        return self.bn(self.second(self.conv(x)))


@pytest.mark.parametrize(
    "options",
    [{}, {"groups": 2, "bias": False}, {"groups": 4, "padding": "same"}],
    ids=["bias", "grouped", "depthwise-same"],
)
def test_convolution_before_batch_norm_takes_it_in(options: dict[str, Any], images: Tensor) -> None:
    folded = fold(ConvWithBias(second=nn.Conv2d(4, 4, 3, **options), bn=nn.BatchNorm2d(4)), images)
    assert list(folded.multipliers) == ["second"]
    assert not batch_norm_sites(folded.graph)


class LinearBatchNorm(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.bn(self.hidden(self.conv(x).mean((2, 3))))))


def test_linear_before_batch_norm_takes_it_in(images: Tensor) -> None:
    folded = fold(LinearBatchNorm(hidden=nn.Linear(4, 4, bias=False), bn=nn.BatchNorm1d(4)), images)
    assert list(folded.multipliers) == ["hidden"]
    assert not folded.unfolded


class TwoReaders(Net):
    def body(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + F.relu(y)


class BatchNormFirst(Net):
    def body(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.bn(x)))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: TwoReaders(bn=nn.BatchNorm2d(4)), "conv has 2 readers, and add reads it"),
        (
            lambda: BatchNormFirst(bn=nn.BatchNorm2d(3)),
            "it follows the input, not a layer with a weight, and relu reads it",
        ),
    ],
    ids=["two readers", "pre-activation"],
)
def test_batch_norm_that_stays_says_why(build: Callable[[], nn.Module], reason: str, images: Tensor) -> None:
    folded = fold(build(), images)
    assert folded.unfolded == {"bn": reason}
    assert [affine.keys[0] for affine in affine_maps(folded.graph)] == ["affine_maps.bn.scale"]
    assert not folded.multipliers


class Shared(Net):
    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.second(F.relu(self.bn1(self.second(self.conv(x)))))))


def test_each_call_of_a_shared_layer_gets_its_own_folded_copy(images: Tensor) -> None:
    folded = fold(Shared(second=nn.Conv2d(4, 4, 3, padding=1), bn1=nn.BatchNorm2d(4), bn2=nn.BatchNorm2d(4)), images)
    assert layer_names(folded) == ["conv", "second", "second.reuse1", "fc"]
    one, other = (get_tensor(folded.graph, f"second{call}.weight") for call in ("", ".reuse1"))
    assert not torch.equal(one, other)


class BorrowedWeight(Net):
    """The first call reads a layer's weight only, the second its bias too."""

    def body(self, x: Tensor) -> Tensor:
        return self.second(self.bn(F.conv2d(self.conv(x), self.second.weight)))


def test_folded_bias_does_not_overwrite_another_reader_s(images: Tensor) -> None:
    fold(BorrowedWeight(second=nn.Conv2d(4, 4, 3), bn=nn.BatchNorm2d(4)), images)


class RawKernel(Net):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3))
        self.bn = nn.BatchNorm2d(4)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(F.conv2d(self.conv(x), self.kernel)))


def test_kernel_outside_any_layer_is_folded_and_named(images: Tensor) -> None:
    folded = fold(RawKernel(), images)
    assert layer_names(folded) == ["conv", "kernel", "fc"]
    assert list(folded.multipliers) == ["kernel"]


def test_dead_channel_stays_finite(images: Tensor) -> None:
    network = ConvWithBias(second=nn.Conv2d(4, 4, 3, bias=False), bn=nn.BatchNorm2d(4, eps=1e-3))
    randomize(network)
    with torch.no_grad():
        network.second.weight[2] = 0
        network.bn.running_mean[2] = 1e-20
        network.bn.running_var[2] = 1e-35
        expected = network(images)
    folded = fold_batch_norms(capture(network, SPEC))
    torch.testing.assert_close(folded.graph(images), expected, rtol=1e-4, atol=1e-5)
    weight = get_tensor(folded.graph, "second.weight")
    assert weight[2].eq(0).all()
    for grid in (minmax_weight_grid, search_weight_grid):
        scale, zero_point = grid(weight, weight_format(4))
        assert torch.isfinite(scale).all() and (scale > 0).all()
        assert torch.isfinite(quantize_weight(weight, scale, zero_point, weight_format(4))).all()


def test_broken_statistics_are_refused_by_name(images: Tensor) -> None:
    network = randomize(ConvWithBias(second=nn.Conv2d(4, 4, 3), bn=nn.BatchNorm2d(4)))
    network.bn.running_var[1] = -1
    with pytest.raises(InputError, match="Batch norm 'bn' cannot be folded"):
        fold_batch_norms(capture(network, SPEC))


def test_the_network_is_left_alone(images: Tensor) -> None:
    network = randomize(Shared(second=nn.Conv2d(4, 4, 1), bn1=nn.BatchNorm2d(4), bn2=nn.BatchNorm2d(4)))
    before = copy.deepcopy(network.state_dict())
    captured = capture(network, SPEC)
    first = captured(images)
    fold_batch_norms(captured)
    assert torch.equal(captured(images), first)
    after = network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(parameter.requires_grad for parameter in network.parameters())


# --- capture


class InPlace(Net):
    def body(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        flat = y.view(y.size(0), -1)
        before = y * 1
        y.relu_()
        z = self.second(y)
        z.add_(y)
        return z + before + flat.mean(1).view(-1, 1, 1, 1)


class ChangesItsInput(Net):
    def body(self, x: Tensor) -> Tensor:
        return F.relu_(self.conv(x.sub_(0.5)))


class ChangesItsBuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def body(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.conv(x)


@pytest.mark.parametrize(
    "build",
    [lambda: InPlace(second=nn.Conv2d(4, 4, 1)), ChangesItsInput, ChangesItsBuffer],
    ids=["activation", "input", "buffer"],
)
def test_in_place_operations_are_gone(build: Callable[[], nn.Module], images: Tensor) -> None:
    folded = fold(build(), images)
    before = images.clone()
    folded.graph(images)
    assert torch.equal(images, before)
    assert not any(
        node.target._schema.is_mutable for node in folded.graph.graph.nodes if hasattr(node.target, "_schema")
    )
    assert cut_points(folded.graph)[-1] == len(data_nodes(folded.graph)) - 1


def weight_norm_by_hooks(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


class Computed(Net):
    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.second(self.conv(x))))


class StandardizedConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


@pytest.mark.parametrize(
    "build",
    [
        lambda: weight_norm_by_hooks(nn.Conv2d(4, 4, 3)),
        lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3, bias=False)),
        lambda: parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, bias=False)),
        lambda: StandardizedConv2d(4, 4, 3),
    ],
    ids=["weight_norm", "parametrized", "spectral_norm", "standardized"],
)
def test_computed_weights_are_constants_named_after_their_layer(build: Callable[[], nn.Module], images: Tensor) -> None:
    folded = fold(Computed(second=build(), bn=nn.BatchNorm2d(4)), images)
    assert layer_names(folded) == ["conv", "second", "fc"]
    assert list(folded.multipliers) == ["second"]
    # nothing is left of what the weight was computed from
    assert {key.split(".")[0] for key in named_tensors(folded.graph)} == {"conv", "second", "fc"}
    assert sum(tensor.dim() == 4 for tensor in named_tensors(folded.graph).values()) == 2


class OldView(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(F.relu(self.second(F.relu(self.conv(x)))), 1)
        return self.fc(y.view(y.size(0), -1))


class ChannelShuffle(Net):
    def body(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        batch, channels, height, width = y.size()
        y = y.view(batch * 2, channels // 2, height, width).sigmoid().view(batch, channels, height, width)
        y = y.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return self.second(y.view(batch, channels, height, width))


class Token(Net):
    def __init__(self, **layers: nn.Module) -> None:
        super().__init__(**layers)
        self.token = nn.Parameter(torch.randn(1, 1, 1, 8))

    def body(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        mean = y.mean((2, 3), keepdim=True).expand(x.size(0), 4, 8, 8)
        return self.second(mean + y)


@pytest.mark.parametrize("kind", [OldView, ChannelShuffle, Token])
def test_batch_size_in_a_shape_leaves_the_cut_points(kind: type[Net], images: Tensor) -> None:
    folded = fold(kind(second=nn.Conv2d(4, 4, 1)), images)
    assert not [node for node in folded.graph.graph.nodes if "sym_size" in str(node.target)]
    assert unit_names(folded) == ["conv", "second", "fc"]


class RepeatedToken(Token):
    def body(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        token = self.token.expand(x.size(0), 4, 1, 8)
        return torch.cat([token, self.second(y), self.token.expand(y.shape[0], 4, -1, -1)], 2)


def test_parameter_expanded_to_the_batch_keeps_the_batch_size(images: Tensor) -> None:
    fold(RepeatedToken(second=nn.Conv2d(4, 4, 1)), images)


class Constants(Net):
    def body(self, x: Tensor) -> Tensor:
        ramp = torch.arange(4.0).view(1, 4, 1, 1)
        x = x - torch.full((1, 3, 1, 1), 0.5)
        y = F.relu(self.conv(x)) * torch.ones(4, 1, 1)
        return self.second(y + torch.zeros(1)) + ramp


def test_constants_made_in_forward_do_not_count_as_data(images: Tensor) -> None:
    folded = fold(Constants(second=nn.Conv2d(4, 4, 1)), images)
    assert all(node.all_input_nodes for node in data_nodes(folded.graph)[1:])
    assert unit_names(folded) == ["conv", "second", "fc"]
    assert set(sites_of(folded)) == {"second.input", "fc.input"}  # the shifted images are 8-bit already


class Noise(Net):
    def body(self, x: Tensor) -> Tensor:
        return self.conv(x) + torch.rand(1)


def test_random_numbers_are_no_constants(images: Tensor) -> None:
    graph = capture(Noise(), SPEC)
    assert not torch.equal(graph(images), graph(images))


class BatchOfZeros(Net):
    """The option-A shortcut as many write it."""

    def body(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        wide = torch.cat([y, torch.zeros(y.size(0), 2, y.size(2), y.size(3))], 1)
        return self.second(F.relu(wide))


def test_constant_of_the_batch_size_works_at_any_batch_size(images: Tensor) -> None:
    folded = fold(BatchOfZeros(second=nn.Conv2d(6, 4, 1)), images)
    assert [layer for unit in reconstruction_units(folded.graph) for layer in unit.layers] == layer_names(folded)


class UnderscoreNames(nn.Module):
    """Names as in EfficientNet-PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self._stem = nn.Conv2d(3, 4, 3, padding=1)
        self._blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)) for _ in range(2))
        self._fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self._stem(x)
        for block in self._blocks:
            x = block(x)
        return self._fc(x.mean((2, 3)))


def test_modules_with_a_leading_underscore_are_blocks(images: Tensor) -> None:
    folded = fold(UnderscoreNames(), images)
    assert unit_names(folded) == ["_stem", "_blocks.0", "_blocks.1", "_fc"]
    assert "_blocks.0.1.relu0.input" in tensor_names(folded.graph)


class TakesTwo(Net):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.fc((self.conv(x) * mask).mean((2, 3)))


class Decides(Net):
    def body(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * 2 if y.sum() > 0 else y


class FixedBatch(Net):
    def body(self, x: Tensor) -> Tensor:
        return self.conv(x).view(2, 4, 8, 8)


class Fails(Net):
    def body(self, x: Tensor) -> Tensor:
        raise ValueError("no such thing")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (TakesTwo, "needs 'mask' beside the images"),
        (Decides, "data-dependent control flow"),
        (FixedBatch, r"cannot be captured for input \(3, 8, 8\): its forward\(\) fixes the number of images"),
        (Fails, r"no such thing. Check --input-size"),
        (Net, None),
    ],
    ids=["two inputs", "control flow", "fixed batch", "raises", "fits"],
)
def test_network_that_does_not_fit_is_refused(
    build: type[nn.Module], message: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    if message is None:
        capture(build(), SPEC)
    else:
        with pytest.raises(InputError, match=message):
            capture(build(), SPEC)
    assert capfd.readouterr() == ("", "")  # the exporter's own words stay away


def test_wrong_number_of_channels_names_the_option() -> None:
    with pytest.raises(InputError, match="--num-channels"):
        capture(Net(), InputSpec(num_channels=1, size=8, mean=(0,), std=(1,)))


class Pooling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def test_network_without_weight_layers_cannot_be_cut() -> None:
    with pytest.raises(InputError, match="no convolution or linear layer"):
        reconstruction_units(capture(Pooling(), SPEC))


# --- cut points, units, names and bits of a residual network


class Block(nn.Module):
    def __init__(self, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.downsample = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) if project else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, prepare: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.prepare = prepare
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Block(project=False))
        self.layer2 = nn.Sequential(Block(project=True))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(self.prepare(x))))
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def residual(images: Tensor) -> FoldedGraph:
    torch.manual_seed(0)
    return fold(ResNet(), images)


def node_at(folded: FoldedGraph, index: int) -> fx.Node:
    return data_nodes(folded.graph)[index]


# 0 x, 1 conv1, 2 relu, | 3 conv1, 4 relu, 5 conv2, 6 add, 7 relu, | 8 conv1, 9 relu, 10 conv2, 11 downsample.0,
# 12 add, 13 relu, | 14 mean, 15 fc; the bars are where the units meet
CUTS = [0, 1, 2, 6, 7, 12, 13, 14, 15]


def test_cut_points(residual: FoldedGraph) -> None:
    kinds = [str(node.target).split(".")[1] for node in data_nodes(residual.graph)[1:]]
    block = ["conv2d", "relu", "conv2d"]
    assert kinds == ["conv2d", "relu", *block, "add", "relu", *block, "conv2d", "add", "relu", "mean", "linear"]
    assert cut_points(residual.graph) == CUTS


def test_units_are_the_blocks(residual: FoldedGraph) -> None:
    units = reconstruction_units(residual.graph)
    nodes = data_nodes(residual.graph)
    ends = [(unit.sources, unit.outputs) for unit in units]
    assert ends == [((nodes[i],), (nodes[j],)) for i, j in ((0, 2), (2, 7), (7, 13), (13, 15))]
    assert units[2].layers == ("layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0")


SITES = {
    "layer1.0.conv1.input": 2,
    "layer1.0.conv2.input": 4,
    "layer2.0.conv1.input": 7,
    "layer2.0.conv2.input": 9,
    "fc.input": 14,
}
"""Site -> index of its node; downsample.0 and the additions share the sites of the tensors they read."""


@pytest.mark.parametrize(
    ("protocol", "edge_weight_bits", "eight_bit_sites"),
    [
        ("genie", 8, {"layer1.0.conv1.input", "fc.input"}),
        ("qdrop", 8, {"fc.input"}),
        ("ait", 4, set()),
    ],
)
def test_bits_of_each_protocol(
    residual: FoldedGraph, protocol: str, edge_weight_bits: int, eight_bit_sites: set[str]
) -> None:
    plan = assign_bits(residual.graph, PROTOCOLS[protocol], 4, 4)
    middle = ["layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0"]
    assert plan.weights == {"conv1": edge_weight_bits, **dict.fromkeys(middle, 4), "fc": edge_weight_bits}
    assert plan.activations == tuple(
        ActivationSite(name, node_at(residual, index).name, 8 if name in eight_bit_sites else 4)
        for name, index in SITES.items()
    )


def test_target_bits_are_told_apart(residual: FoldedGraph) -> None:
    plan = assign_bits(residual.graph, PROTOCOLS["ait"], 2, 5)
    assert set(plan.weights.values()) == {2}
    assert {site.bits for site in plan.activations} == {5}


def test_names_of_what_no_layer_reads_first(residual: FoldedGraph) -> None:
    names = tensor_names(residual.graph)
    assert names["layer1.0.add0.lhs"] is node_at(residual, 5)
    assert "layer1.0.add0.rhs" not in names  # the block's input: conv1 reads it first
    assert names["layer2.0.add0.rhs"] is node_at(residual, 11)
    assert names["layer1.0.relu0.input"] is node_at(residual, 3)
    assert names["layer1.0.relu1.input"] is node_at(residual, 6)
    assert names["fc.output"] is node_at(residual, 15)  # which no node reads
    assert len(names) == 16  # each tensor has one name


class Doubled(nn.Module):
    """Counts its calls; stands for a quantizer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return 2 * x


class Kept(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self) -> Tensor:
        return self.weight


def test_every_reader_of_a_site_reads_the_quantized_tensor(images: Tensor) -> None:
    """With a quantizer that doubles the first block's input, the residual path must see the double too."""
    network = ResNet()
    folded = fold(network, images)
    (site,) = [s for s in assign_bits(folded.graph, PROTOCOLS["ait"], 4, 4).activations if "layer1.0.conv1" in s.name]
    quantizer = Doubled()
    weights = {layer.name: Kept(get_tensor(folded.graph, layer.weight_key)) for layer in weight_layers(folded.graph)}
    plan = BitPlan(dict.fromkeys(weights, 4), (site,))
    student = insert_quantizers(folded.graph, plan, weights, {site.name: quantizer})
    with torch.no_grad():
        x = 2 * F.relu(network.bn1(network.conv1(images)))
        expected = network.fc(network.layer2(network.layer1(x)).mean((2, 3)))
    torch.testing.assert_close(student(images), expected, rtol=1e-4, atol=1e-5)
    assert quantizer.calls == 1
    assert torch.equal(folded.graph(images), fold_batch_norms(capture(network, SPEC)).graph(images))


class Fork(Net):
    def body(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        return self.left(y) + self.right(y)


def test_tensor_of_two_layers_takes_the_larger_bits(images: Tensor) -> None:
    folded = fold(Fork(left=nn.Conv2d(4, 4, 1), right=nn.Conv2d(4, 4, 3, padding=1)), images)
    assert sites_of(folded, "genie") == {"left.input": 8, "fc.input": 8}  # left is the second layer, right is not


def test_preprocessing_of_the_images_is_not_quantized(images: Tensor) -> None:
    def transform_input(x: Tensor) -> Tensor:
        channels = [x[:, i].unsqueeze(1) * (0.2 + 0.1 * i) + 0.03 * i for i in range(3)]
        return torch.cat(channels, 1)

    folded = fold(ResNet(transform_input), images)
    assert list(sites_of(folded)) == list(SITES)
    assert reconstruction_units(folded.graph)[0].layers == ("conv1",)


def test_names_that_differ_in_a_dot_stay_apart(images: Tensor) -> None:
    class Confusable(Net):
        def __init__(self) -> None:
            super().__init__(a_=nn.ModuleDict({"b": nn.Conv2d(4, 4, 1)}), a=nn.ModuleDict({"_b": nn.Conv2d(4, 4, 1)}))

        def body(self, x: Tensor) -> Tensor:
            return self.a["_b"](self.a_["b"](self.conv(x)))

    folded = fold(Confusable(), images)
    weights = {layer.name: Kept(get_tensor(folded.graph, layer.weight_key)) for layer in weight_layers(folded.graph)}
    assert list(weights) == ["conv", "a_.b", "a._b", "fc"]
    student = insert_quantizers(folded.graph, BitPlan(dict.fromkeys(weights, 4), ()), weights, {})
    assert torch.equal(student(images), folded.graph(images))


def test_extract_with_several_outputs(residual: FoldedGraph, images: Tensor) -> None:
    nodes = data_nodes(residual.graph)
    piece = extract(residual.graph, nodes[1:], nodes[:1], [nodes[7], nodes[15]])
    block, logits = piece(images)
    assert torch.equal(logits, residual.graph(images))
    rest = extract(residual.graph, nodes[8:], [nodes[7]], [nodes[15]])
    assert torch.equal(rest(block), logits)


def test_no_memory_for_the_capture_is_no_fault_of_the_network() -> None:
    class Starved(Net):
        def forward(self, x: Tensor) -> Tensor:
            raise MemoryError

    with pytest.raises(DeviceError, match="captured"):
        capture(Starved(), SPEC)
