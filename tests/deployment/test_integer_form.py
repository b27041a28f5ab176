"""Integers with the values of the quantized network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from genie_cli.config import InputSpec
from genie_cli.deployment.integer_form import (
    PAIR_LIMIT,
    _exact_bias,
    _integer_bias,
    _integer_weight,
    integer_form,
)
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.integer_operations import is_clip
from genie_cli.models.graph.operations import operation_of
from genie_cli.student.bit_plan import ActivationSite, BitPlan
from genie_cli.student.build import _safe, insert_quantizers
from genie_cli.student.formats import activation_format, weight_format
from genie_cli.student.integer_biases import spare_bits
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight
from genie_cli.student.quantized_layers import layer_name


def integer_weight(bits: int, seed: int) -> IntegerWeight:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (4, 3, 3, 3), generator=generator)
    zero_point = torch.randint(0, 2**bits, (4, 1), generator=generator)
    return IntegerWeight(codes, torch.rand(4, 1, generator=generator) + 0.01, zero_point, weight_format(bits))


def linear_weight() -> IntegerWeight:
    codes = torch.arange(32).view(4, 8) % 16
    return IntegerWeight(codes, torch.full((4, 1), 0.1), torch.full((4, 1), 8), weight_format(4))


@given(st.integers(2, 8), st.integers(0, 2**16), st.sampled_from(["int8", "packed"]), st.booleans())
def test_weights_keep_their_values_to_the_bit(bits: int, seed: int, storage: str, is_finer: bool) -> None:
    weight = integer_weight(bits, seed)
    source = ActivationQuantizer(0.1, activation_format(8, signed=False))
    k = spare_bits(weight, source) if is_finer and storage == "int8" else 0
    stored = _integer_weight(weight, storage, k)  # type: ignore[arg-type]
    assert stored.codes.dtype in (torch.int8, torch.uint8)
    assert torch.equal(stored(), weight())


@given(st.integers(2, 7), st.integers(0, 2**16))
def test_up_to_seven_bits_have_zero_point_zero(bits: int, seed: int) -> None:
    assert not _integer_weight(integer_weight(bits, seed), "int8", 0).zero_point.any()


@given(st.integers(2, 7), st.integers(2, 8), st.integers(0, 2**16))
def test_finer_codes_neither_overflow_nor_saturate(bits: int, activation_bits: int, seed: int) -> None:
    weight = integer_weight(bits, seed)
    source = ActivationQuantizer(0.1, activation_format(activation_bits, signed=False))
    k = spare_bits(weight, source)
    largest = int((weight.codes.int() - weight.zero_point.view(-1, 1, 1, 1)).abs().max()) << k
    assert largest <= 127
    assert k == 0 or 2 * (2**activation_bits - 1) * largest <= PAIR_LIMIT


def test_a_bias_is_within_half_a_step_of_the_product_of_the_scales() -> None:
    weight, bias = integer_weight(4, 0), torch.tensor([0.3, -1.7, 0.0, 2.5])
    source = ActivationQuantizer(0.1, activation_format(4, signed=False))
    stored = _integer_bias(bias, weight, source, 3)
    assert stored is not None
    step = weight.scale.flatten() * 0.1 / 8
    assert ((stored() - bias).abs() <= step / 2 * 1.001).all()
    assert torch.allclose(stored.scale, step)


def test_a_bias_too_large_for_int32_is_none() -> None:
    source = ActivationQuantizer(1e-8, activation_format(8, signed=False))
    assert _integer_bias(torch.full((4,), 1e3), integer_weight(8, 0), source, 0) is None


@pytest.mark.parametrize("bias", [torch.tensor([0.3, -1e-20, 0.0, 2.5e7])])
def test_a_bias_in_float_is_exact(bias: Tensor) -> None:
    assert torch.equal(_exact_bias(bias)(), bias)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_a_bias_that_int32_does_not_hold_is_added_behind_its_layer(kind: str) -> None:
    """The layer keeps its values, and reads no bias that a runtime would round."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3) if kind == "conv" else nn.Linear(8, 4)
    images = torch.rand(2, 3, 8, 8)
    folded = fold_batch_norms(capture(nn.Sequential(nn.ReLU(), layer), InputSpec(size=8))).graph
    (relu,) = (node.name for node in folded.graph.nodes if node.target is torch.ops.aten.relu.default)
    (own,) = (node.name for node in folded.graph.nodes if operation_of(node) is not None)
    tiny = ActivationQuantizer(1e-12, activation_format(8, signed=False))
    behind = ActivationQuantizer(0.01, activation_format(8, signed=True))
    weight = integer_weight(4, 0) if kind == "conv" else linear_weight()
    plan = BitPlan({"1": 4}, (ActivationSite("1.input", relu, 8), ActivationSite("1.output", own, 8)))
    student = insert_quantizers(folded, plan, {"1": weight}, {"1.input": tiny, "1.output": behind})
    form = integer_form(student, "int8", integer_biases=True)
    torch.testing.assert_close(form(images), student(images), rtol=1e-5, atol=1e-6)
    (found,) = (node for node in form.graph.nodes if operation_of(node) is not None)
    operation = operation_of(found)
    assert operation is not None and operation.bias is not None
    assert found.args[operation.bias] is None
    assert [user.target for user in found.users] == [torch.ops.aten.add.Tensor]


@given(st.text("a_d.0", min_size=1))
def test_names_of_modules_are_those_of_layers(name: str) -> None:
    assert layer_name(f"weight_quantizers.{_safe(name)}") == name


@pytest.mark.parametrize("clip", [nn.ReLU6(), nn.ReLU(), nn.Hardtanh(-0.3, 0.77)], ids=str)
@pytest.mark.parametrize("is_signed", [False, True])
def test_a_clip_is_one_of_codes(clip: nn.Module, is_signed: bool) -> None:
    """Its bounds lie between two codes; the values are those of the clip and the quantizer behind it."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8) * 4
    folded = fold_batch_norms(capture(nn.Sequential(nn.Conv2d(3, 4, 3), clip), InputSpec(size=8))).graph
    (node,) = (node.name for node in folded.graph.nodes if is_clip(node))
    quantizer = ActivationQuantizer(0.83, activation_format(4, is_signed))
    plan = BitPlan({"0": 4}, (ActivationSite("0.output", node, 4),))
    student = insert_quantizers(folded, plan, {"0": integer_weight(4, 0)}, {"0.output": quantizer})
    form = integer_form(student, "int8", integer_biases=False)
    assert not [node for node in form.graph.nodes if is_clip(node)]
    found = form(images)
    torch.testing.assert_close(found, student(images), rtol=1e-5, atol=1e-6)
    assert len(found.unique()) > 1


class Moved(nn.Module):
    """A layer behind whose clip values are moved."""

    def __init__(self, clip: Callable[[Tensor], Tensor], move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.clip, self.move = nn.Conv2d(3, 4, 3), clip, move

    def forward(self, x: Tensor) -> Tensor:
        return self.move(self.clip(self.layer(x)))


def unpooled(x: Tensor) -> Tensor:
    values, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(values, places, 2)


def adaptive(x: Tensor) -> Tensor:
    values, places = F.adaptive_max_pool2d(x, 3, return_indices=True)
    return values.flatten(1) * places.flatten(1)


MOVES = {
    "zeros": lambda x: F.pad(x, (2, 1, 2, 1)),
    "zeros of a slice": lambda x: F.pad(x[:, :2], (2, 1, 2, 1)).flip(2),
    "copies": lambda x: F.pad(x, (2, 1, 2, 1), mode="replicate"),
    "unpooled": unpooled,
    "adaptive": adaptive,
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("low, high", [(0.5, 3.0), (-3.0, -0.5), (0.0, 6.0)])
def test_values_moved_behind_a_clip_are_the_same(move: Callable[[Tensor], Tensor], low: float, high: float) -> None:
    """Zeros of a padding may lie outside of the clip, and places of maxima are no values."""
    torch.manual_seed(0)
    network = Moved(partial(F.hardtanh, min_val=low, max_val=high), move)
    folded = fold_batch_norms(capture(network, InputSpec(size=8))).graph
    (node,) = (node.name for node in folded.graph.nodes if is_clip(node))
    quantizer = ActivationQuantizer(0.1, activation_format(8, signed=True))
    plan = BitPlan({"layer": 4}, (ActivationSite("layer.output", node, 8),))
    student = insert_quantizers(folded, plan, {"layer": integer_weight(4, 0)}, {"layer.output": quantizer})
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(integer_form(student, "int8", integer_biases=False)(images), student(images))
