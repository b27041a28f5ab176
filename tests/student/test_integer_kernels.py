"""Kernels against integer arithmetic in NumPy."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional as F

from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.config import InputSpec, QuantizeConfig
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.presets import preset_options
from genie_cli.student.bit_assignment import assign_bits
from genie_cli.student.bit_plan import BitPlan
from genie_cli.student.build import insert_quantizers
from genie_cli.student.formats import activation_format, weight_format
from genie_cli.student.integer_biases import bias_codes, bias_scale, spare_bits
from genie_cli.student.integer_kernels import use_integer_kernels
from genie_cli.student.kernel_modules import Addition, Requantize, RequantizeMean, WeightCodes
from genie_cli.student.load import computing, load, load_student
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight
from genie_cli.student.protocol import PROTOCOLS
from tests.support import stages
from tests.support.networks import digit_images
from tests.support.students import save_student

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def as_int32(values: Integers) -> Integers:
    assert np.abs(values).max() < 2**31
    return values


def rounded(sums: Integers, multiplier: Floats, low: int, high: int) -> Integers:
    """The requantization: float32 of an int32, one product, ties to even."""
    scaled = sums.astype(np.float32) * multiplier
    assert scaled.dtype == np.float32
    return np.clip(np.rint(scaled), low, high).astype(np.int64)


class Quantized:
    """A network of one input with random quantizers, in floats and as integer kernels compute it."""

    def __init__(self, folded: fx.GraphModule, weight_bits: int, activation_bits: int, seed: int) -> None:
        self.generator, self.folded = draws(seed), folded
        (source,) = (node for node in folded.graph.nodes if node.op == "placeholder")
        size = source.meta["val"].shape[-1]
        self.plan = assign_bits(self.folded, PROTOCOLS["integer"], weight_bits, activation_bits)
        example = torch.randn(8, 4, size, size, generator=self.generator)
        self.weights = {layer.name: self._weight(layer.name, layer.weight_key) for layer in weight_layers(self.folded)}
        values = {}

        class Recorder(fx.Interpreter):
            def run_node(self, n: fx.Node) -> object:
                values[n.name] = super().run_node(n)
                return values[n.name]

        Recorder(self.folded).run(example)
        self.activations = {site.name: self._quantizer(site.bits, values[site.node]) for site in self.plan.activations}
        self.simulated = insert_quantizers(self.folded, self.plan, self.weights, self.activations).eval()
        self.computed = copy.deepcopy(self.simulated)
        use_integer_kernels(self.computed)
        self.images = torch.randn(3, 4, size, size, generator=self.generator)

    def _weight(self, name: str, key: str) -> IntegerWeight:
        weight = get_tensor(self.folded, key)
        format = self.plan.weight_format(name)
        scale = weight.abs().flatten(1).amax(1, keepdim=True) / max(1, format.quant_max // (1 if format.signed else 2))
        zero_point = torch.full_like(scale, 0 if format.signed else (format.quant_max + 1) // 2)
        return IntegerWeight.nearest(weight, scale, zero_point, format)

    def _quantizer(self, bits: int, values: Tensor) -> ActivationQuantizer:
        format = activation_format(bits, signed=bool((values < 0).any()))
        spread = 0.5 + torch.rand(1, generator=self.generator).item()
        return ActivationQuantizer(float(values.abs().max()) / format.quant_max * spread, format)

    def codes(self, site: str, values: Tensor) -> Integers:
        own = self.activations[site]
        codes = (values / own.step_size).round().clamp(own.format.quant_min, own.format.quant_max)
        return codes.numpy().astype(np.int64)

    def layer(self, name: str, site: str, output: str | None) -> tuple[Integers, Integers, Floats, tuple[int, int]]:
        """Weight codes, bias codes, multiplier and bounds, each made anew from scales."""
        weight, source = self.weights[name], self.activations[site]
        (layer,) = (layer for layer in weight_layers(self.folded) if layer.name == name)
        assert layer.bias_key is not None
        bias = get_tensor(self.folded, layer.bias_key)
        k = spare_bits(weight, source, bias)
        scale = bias_scale(weight, source, k)
        codes = bias_codes(bias, scale)
        assert codes is not None
        zero_point = weight.zero_point.view(-1, *[1] * (weight.codes.dim() - 1))
        centred = (weight.codes.int() - zero_point).numpy().astype(np.int64) << k
        multiplier = scale.numpy()
        bounds = (0, 0)
        if output is not None:
            target = self.activations[output]
            multiplier = multiplier / target.step_size.numpy()
            bounds = target.format.quant_min, target.format.quant_max
        return centred, codes.numpy().astype(np.int64), multiplier, bounds


def convolved(codes: Integers, weight: Integers, layer: nn.Module) -> Integers:
    """Sums of products of integers, by float64, which is exact below 2^53."""
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    function: Callable[..., Tensor] = F.conv2d if isinstance(layer, nn.Conv2d) else F.conv_transpose2d
    kernel = torch.from_numpy(weight).double()
    if isinstance(layer, nn.ConvTranspose2d):  # the graph has the output channels first
        groups = layer.groups
        kernel = torch.cat([part.transpose(0, 1) for part in kernel.chunk(groups)])
    sums = function(
        torch.from_numpy(codes).double(),
        kernel,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )
    return as_int32(sums.numpy().astype(np.int64))


def folded(network: nn.Module, size: int) -> fx.GraphModule:
    spec = InputSpec(size=size, num_channels=4, mean=(0,) * 4, std=(1,) * 4)
    return fold_batch_norms(capture(network.eval(), spec)).graph


class Layer(nn.Module):
    """A layer with or without a clip behind it; its output is quantized."""

    def __init__(self, layer: nn.Module, clip: nn.Module) -> None:
        super().__init__()
        self.layer, self.clip = layer, clip

    def forward(self, x: Tensor) -> Tensor:
        return self.clip(self.layer(x))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=2),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2),
    "transposed, grouped": lambda: nn.ConvTranspose2d(4, 6, 2, groups=2),
}


@cache
def behind_clip(kind: str, clip: Callable[[], nn.Module]) -> tuple[nn.Module, fx.GraphModule]:
    """A layer, and the graph of it with a clip behind it."""
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    return layer, folded(Layer(layer, clip()), 6)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("clip", [nn.Identity, nn.ReLU])
@given(weight_bits=st.integers(2, 8), activation_bits=st.integers(2, 8), seed=st.integers(0, 2**16))
@settings(max_examples=6, deadline=None)
def test_a_convolution_gives_the_codes_of_integers(
    kind: str, clip: Callable[[], nn.Module], weight_bits: int, activation_bits: int, seed: int
) -> None:
    layer, graph = behind_clip(kind, clip)
    net = Quantized(graph, weight_bits, activation_bits, seed)
    (source, output) = (site.name for site in net.plan.activations)
    weight, bias, multiplier, bounds = net.layer("layer", source, output)
    sums = as_int32(convolved(net.codes(source, net.images), weight, layer) + bias[:, None, None])
    found = net.codes(output, net.computed(net.images))
    low = 0 if clip is nn.ReLU else bounds[0]
    assert np.array_equal(found, rounded(sums, multiplier[:, None, None], low, bounds[1]))


@cache
def one_linear_layer() -> fx.GraphModule:
    torch.manual_seed(0)
    return folded(nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), 2)


@given(seed=st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_a_linear_layer_gives_its_sums_as_floats(seed: int) -> None:
    net = Quantized(one_linear_layer(), 4, 4, seed)
    (source,) = (site.name for site in net.plan.activations)
    weight, bias, multiplier, _ = net.layer("1", source, None)
    sums = net.codes(source, net.images.flatten(1)) @ weight.T + bias
    assert np.array_equal(net.computed(net.images).numpy(), as_int32(sums).astype(np.float32) * multiplier)


def test_sums_that_float32_does_not_hold_are_added_in_int32() -> None:
    """A bias near 2^30 and one product of 1: float32 would lose it, int32 keeps it until the one rounding."""
    weight = IntegerWeight(torch.ones(1, 1), torch.ones(1, 1), torch.zeros(1, 1), weight_format(8, "symmetric"))
    assert weight().item() == 1
    requantize = Requantize(torch.ones(1), torch.tensor([(1 << 24)], dtype=torch.int32), None)
    sums = torch.tensor([[1.0], [3.0], [-1.0]])
    expected = np.array([[(1 << 24) + 1], [(1 << 24) + 3], [(1 << 24) - 1]]).astype(np.float32)
    assert np.array_equal(requantize(sums).numpy(), expected)


@given(
    lows=st.tuples(*[st.sampled_from([0, -128])] * 3),
    steps=st.tuples(*[st.floats(1e-3, 10)] * 2),
    share=st.floats(0.3, 2),
)
@settings(max_examples=25, deadline=None)
def test_an_addition_of_all_codes_is_a_fused_multiply_add(
    lows: tuple[int, int, int], steps: tuple[float, float], share: float
) -> None:
    """In exact fractions: each of both steps is rounded to float32 once."""
    low_a, low_b, low = lows
    quantizers = [
        ActivationQuantizer(step, activation_format(8, signed=lowest < 0))
        for step, lowest in zip((*steps, sum(steps) * share), lows, strict=True)
    ]
    a, b = np.meshgrid(np.arange(256), np.arange(0, 256, 5), indexing="ij")
    step_a, step_b, step = (quantizer.step_size.numpy()[0] for quantizer in quantizers)
    ratio_a, ratio_b = step_a / step, step_b / step
    offset = np.float32(-low) - (ratio_a * np.float32(-low_a) + ratio_b * np.float32(-low_b))
    inner = (b * ratio_b.astype(np.longdouble) + offset).astype(np.float32)
    outer = (a * ratio_a.astype(np.longdouble) + inner).astype(np.float32)
    expected = np.clip(np.rint(outer) + low, low, low + 255)
    module = Addition(*quantizers[:2], quantizers[2], (low, low + 255))
    found = module(torch.from_numpy(a + low_a).float(), torch.from_numpy(b + low_b).float())
    assert np.array_equal(found.numpy(), expected)


@given(sides=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_a_mean_is_the_rounded_sum(sides: tuple[int, int], seed: int) -> None:
    codes = torch.randint(-128, 128, (2, 3, *sides), generator=draws(seed)).float()
    number = sides[0] * sides[1]
    multiplier = torch.tensor([0.37]) / number
    found = RequantizeMean(number, multiplier, (-128, 127))(codes.mean((2, 3)))
    sums = codes.numpy().astype(np.int64).sum((2, 3))
    assert np.array_equal(found.numpy(), rounded(sums, multiplier.numpy(), -128, 127))


class Block(nn.Module):
    """Layers, a pooling that moves, an addition, a float island, a mean and a clip at 6."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu6(self.first(x) * 4), 2)
        x = F.relu(x + self.second(x))
        return self.fc(torch.sigmoid(self.third(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def block() -> Quantized:
    torch.manual_seed(0)
    return Quantized(folded(Block(), 8), 4, 8, 0)


def test_kernels_change_no_more_than_roundings(block: Quantized) -> None:
    with torch.no_grad():
        own, other = block.computed(block.images), block.simulated(block.images)
    assert (own - other).abs().max() < 0.05 * other.abs().max()
    kinds = [type(module).__name__ for module in block.computed.modules()]
    assert kinds.count("WeightCodes") == 4
    assert kinds.count("Addition") == kinds.count("RequantizeMean") == 1
    assert "IntegerWeight" not in kinds
    assert "ActivationQuantizer" not in kinds


def test_more_than_eight_bits_stay_in_float() -> None:
    """Runtimes have no integer kernel for them."""
    torch.manual_seed(0)
    net = Quantized(folded(Block(), 8), 4, 16, 0)
    kinds = {type(module).__name__ for module in net.computed.modules()}
    assert not kinds & {"WeightCodes", "Addition", "RequantizeMean"}
    assert torch.allclose(net.computed(net.images), net.simulated(net.images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_cast_network_has_the_same_codes(dtype: torch.dtype, block: Quantized) -> None:
    """Its input and output are rounded, nothing between them."""
    cast = copy.deepcopy(block.computed).to(dtype)
    images = block.images.to(dtype)
    found = cast(images)
    assert found.dtype == dtype
    assert torch.allclose(found.float(), block.computed(images.float()), rtol=0.01, atol=0.01)
    assert torch.equal(cast.float()(block.images), block.computed(block.images))


def test_it_is_copied_and_pickled(block: Quantized) -> None:
    with torch.no_grad():
        expected = block.computed(block.images)
        assert torch.equal(pickle.loads(pickle.dumps(block.computed))(block.images), expected)  # noqa: S301
        assert torch.equal(copy.deepcopy(block.computed)(block.images), expected)
        assert torch.equal(torch.compile(block.computed, backend="eager")(block.images), expected)


@pytest.mark.parametrize("protocol", ["genie", "integer"])
def test_a_folder_says_how_it_is_computed(protocol: str, digits_teacher: Teacher, tmp_path: Path) -> None:
    images = digit_images(16)
    options = preset_options("minmax") | {"protocol": protocol, "weight_bits": 4, "activation_bits": 8}
    config = QuantizeConfig(preset="minmax", **options)
    save_student(stages.quantize(digits_teacher, images, config), digits_teacher, tmp_path / "q")
    artifact = load_quantized(tmp_path / "q")
    loaded = load("digits_resnet", tmp_path / "q")
    has_kernels = any(isinstance(module, WeightCodes) for module in loaded.modules())
    assert has_kernels == (protocol == "integer")
    student = computing(load_student(digits_teacher, artifact), artifact)
    with torch.no_grad():
        assert torch.equal(loaded(images), student(images))


def test_a_plan_without_sites_stays_as_it_is() -> None:
    torch.manual_seed(0)
    graph = fold_batch_norms(capture(nn.Sequential(nn.Conv2d(3, 4, 3)), InputSpec(size=6))).graph
    weight = IntegerWeight(torch.ones(4, 3, 3, 3), torch.ones(4, 1), torch.zeros(4, 1), weight_format(4, "symmetric"))
    student = insert_quantizers(graph, BitPlan({"0": 4}, ()), {"0": weight}, {}).eval()
    images = torch.randn(2, 3, 6, 6)
    expected = student(images)
    use_integer_kernels(student)
    assert torch.equal(student(images), expected)
