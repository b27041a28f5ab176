"""The weight behind nearest rounding (AdaQuant, LSQ) against NumPy: values, gradients, finished integers, learning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genie_cli.config import InputSpec, QuantizeConfig
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.quantization.learned.straight_through_weight import StraightThroughWeight
from genie_cli.quantization.quantize import QuantizedNetwork
from genie_cli.quantization.reconstruction.parameters import UnitParameters
from genie_cli.runtime.progress import Advanced, Event, silent
from genie_cli.student.formats import weight_format
from genie_cli.student.grid import minmax_weight_grid, quantize_weight, search_weight_grid
from tests.support import stages

SHAPES = {"conv": (6, 4, 3, 3), "depthwise": (6, 1, 3, 3), "linear": (6, 11), "one-channel": (1, 20, 3, 1)}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def make(shape: tuple[int, ...], bits: int = 3, offset_scale: float = 0.7, seed: int = 1) -> StraightThroughWeight:
    """Shifts of a step and more, and step sizes off their start, as after some training."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.3
    scale, zero_point = search_weight_grid(weight, weight_format(bits))
    learned = StraightThroughWeight(
        weight, scale, zero_point, weight_format(bits), torch.full_like(scale, offset_scale)
    )
    learned.original = weight
    draws = torch.Generator().manual_seed(seed)
    learned.elements.copy_(torch.randn(shape, generator=draws) * 2)
    learned.offset.copy_(torch.randn(learned.offset.shape, generator=draws) * 0.2 * learned.start / offset_scale)
    return learned


def step_size(learned: StraightThroughWeight) -> Tensor:
    return learned.start + learned.offset_scale * learned.offset


def weight_of(learned: StraightThroughWeight) -> Tensor:
    return learned.parts(learned.elements, step_size(learned)).weight


def gradients(learned: StraightThroughWeight, incoming: Tensor) -> tuple[Tensor, Tensor]:
    """Of the shifts and of the offsets, through all that a unit does with them."""
    unit = UnitParameters({"layer": learned}, {}, QuantizeConfig(rounding="adaquant"), torch.device("cpu"))
    (weight,) = unit.make(torch.float32, None).weights
    assert torch.equal(weight, weight_of(learned))
    weight.backward(incoming)
    assert unit.elements.grad is not None and unit.offsets.grad is not None
    return unit.elements.grad.view(learned.elements.shape), unit.offsets.grad.view(learned.offset.shape)


def oracle(learned: StraightThroughWeight) -> dict[str, np.ndarray]:
    """The docstring's formula in float64."""
    top = 2**learned.format.bits - 1
    parts = (learned.start, learned.zero_point, learned.offset_scale)
    start, zero_point, offset_scale = (t.double().numpy() for t in parts)
    moved = learned.original.double().numpy() + start * learned.elements.double().numpy()
    step = start + offset_scale * learned.offset.double().numpy()
    exact = moved / step
    rounded = np.round(exact)
    codes = np.clip(rounded + zero_point, 0, top)
    inside = (rounded + zero_point >= 0) & (rounded + zero_point <= top)
    clear = np.abs(np.abs(exact - np.floor(exact)) - 0.5) > 1e-4  # float32 may round the others to the other side
    return {
        "start": start, "step": step, "exact": exact, "codes": codes, "zero_point": zero_point, "inside": inside,
        "clear": clear, "weight": (codes - zero_point) * step,
    }  # fmt: skip


@shapes
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_forward_is_that_of_numpy(shape: tuple[int, ...], bits: int):
    learned = make(shape, bits)
    wanted = oracle(learned)
    weight = weight_of(learned)
    assert weight.shape == shape and weight.dtype == torch.float32
    clear = wanted["clear"]
    assert clear.mean() > 0.9
    np.testing.assert_allclose(weight.detach().numpy()[clear], wanted["weight"][clear], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(step_size(learned).numpy(), wanted["step"], rtol=1e-6)


@shapes
@pytest.mark.parametrize("bits", [2, 4])
def test_gradients_are_those_of_lsq(shape: tuple[int, ...], bits: int):
    """Esser et al. 2020, Eq. 3 and 5: 1 inside the grid; round(w/s) - w/s inside it, the end of the grid outside."""
    learned = make(shape, bits)
    wanted = oracle(learned)
    assert wanted["clear"].all() or shape != SHAPES["conv"]
    assert 0.1 < wanted["inside"].mean() < 1
    incoming = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    grad_shift, grad_offset = gradients(learned, incoming)
    grads = incoming.double().numpy()
    np.testing.assert_allclose(grad_shift.numpy(), grads * wanted["inside"] * wanted["start"], rtol=1e-5, atol=1e-7)
    steps_away = wanted["codes"] - wanted["zero_point"]
    per_element = np.where(wanted["inside"], steps_away - wanted["exact"], steps_away)
    axes = tuple(range(1, len(shape)))
    wanted_offset = 0.7 * (grads * per_element).sum(axes, keepdims=True)
    np.testing.assert_allclose(grad_offset.numpy(), wanted_offset, rtol=1e-4, atol=1e-4)


def test_gradients_by_hand():
    """One channel of 2 bits, codes 0..3 with zero point 1, step 0.5: grid -0.5, 0, 0.5, 1."""
    weight = torch.tensor([[-2.0, -0.45, 0.3, 0.5, 1.0, 3.0]])
    scale, zero_point = torch.tensor([[0.5]]), torch.tensor([[1.0]])
    learned = StraightThroughWeight(weight, scale, zero_point, weight_format(2), torch.ones(1, 1))
    assert weight_of(learned).tolist() == [[-0.5, -0.5, 0.5, 0.5, 1.0, 1.0]]
    grad_shift, grad_offset = gradients(learned, torch.ones(1, 6))
    assert grad_shift.tolist() == [[0.0, 0.5, 0.5, 0.5, 0.5, 0.0]]
    # -1 and 2 at the ends; -1 + 0.9, 1 - 0.6, 0 and 0 inside
    assert grad_offset.item() == pytest.approx(-1 + 2 - 0.1 + 0.4)


@shapes
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("range_", [search_weight_grid, minmax_weight_grid])
def test_it_starts_at_nearest_rounding(shape: tuple[int, ...], bits: int, range_: Any):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    scale, zero_point = range_(weight, weight_format(bits))
    hardened = StraightThroughWeight(weight, scale, zero_point, weight_format(bits), scale).harden()
    assert torch.equal(hardened.codes.float(), quantize_weight(weight, scale, zero_point, weight_format(bits)))
    assert torch.equal(hardened.scale, scale) and torch.equal(hardened.zero_point.float(), zero_point)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 8), offset_scale=st.sampled_from([1e-4, 0.7, 37.0]))
def test_finished_integers_are_the_forward_weight_to_the_bit(seed: int, bits: int, offset_scale: float):
    learned = make(SHAPES["conv"], bits, offset_scale, seed)
    learned.offset.clamp_(min=-0.99 * learned.start / offset_scale)  # as a unit keeps it
    hardened = learned.harden()
    assert torch.equal(hardened(), weight_of(learned))
    assert hardened.codes.dtype == torch.uint8 and int(hardened.codes.max()) <= 2**bits - 1
    assert hardened.scale.shape == hardened.zero_point.shape == (6, 1) and (hardened.scale > 0).all()


def test_codes_follow_the_step_size():
    """Unlike GENIE-M's base: twice the step size is half the code."""
    weight = torch.tensor([[0.0, 1.0, 2.0, 4.0, 6.0]])
    learned = StraightThroughWeight(weight, torch.ones(1, 1), torch.zeros(1, 1), weight_format(3), torch.ones(1, 1))
    assert learned.harden().codes.tolist() == [[0, 1, 2, 4, 6]]
    learned.offset.fill_(1.0)
    assert learned.harden().codes.tolist() == [[0, 0, 1, 2, 3]]  # a half rounds to the even code
    assert weight_of(learned).tolist() == [[0, 0, 2, 4, 6]]


# learning


class TwoLayers(nn.Module):
    """A convolution with its batch norm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm, self.fc = nn.Conv2d(2, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.norm.running_mean.normal_(std=0.1)
        self.norm.running_var.fill_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def small() -> Teacher:
    return make_teacher("small", TwoLayers(), InputSpec(num_channels=2, size=8, mean=(0.0,) * 2, std=(1.0,) * 2))


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Neighbouring pixels and channels are alike: for white noise, rounding to nearest is best already."""
    draws = torch.Generator().manual_seed(4)
    coarse, fine = torch.randn(32, 1, 2, 2, generator=draws), torch.randn(32, 2, 8, 8, generator=draws)
    return nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear") + 0.3 * fine


def quantize(
    teacher: Teacher, images: Tensor, report: Any = silent, log_every: int | None = None, **options: Any
) -> QuantizedNetwork:
    fast = {
        "weight_bits": 2, "activation_bits": 8, "protocol": "ait", "unit": "layer", "rounding": "adaquant",
        "drop_prob": 0.0, "num_steps": 150, "batch_size": 32, "rounding_lr": 1e-3,
    }  # fmt: skip
    config = QuantizeConfig(**{**fast, **options})
    return stages.quantize(teacher, images, config, report=report, log_every=log_every)


def test_adaquant_learns(small: Teacher, images: Tensor):
    events: list[Event] = []
    learned = quantize(small, images, events.append, log_every=1)
    losses = [e.values["loss"] for e in events if isinstance(e, Advanced) and "loss" in e.values]
    assert len(losses) == 300
    assert min(losses[:150]) < 0.9 * losses[0]
    nearest = quantize(small, images, reconstruct=False)
    for unit, baseline in zip(learned.units, nearest.units, strict=True):
        assert unit.relative_error < 0.8 * baseline.relative_error
    for name, weight in learned.weights.items():
        assert not torch.equal(weight.codes, nearest.weights[name].codes)
        assert not torch.equal(weight.scale, nearest.weights[name].scale)


def test_a_rate_of_zero_leaves_the_codes(small: Teacher, images: Tensor):
    still = quantize(small, images, rounding_lr=0.0, weight_step_lr=0.0, num_steps=3)
    for layer in weight_layers(still.plan.folded.graph):
        weight, found = get_tensor(still.plan.folded.graph, layer.weight_key), still.weights[layer.name]
        scale, zero_point = search_weight_grid(weight, found.format)
        assert torch.equal(found.codes.float(), quantize_weight(weight, scale, zero_point, found.format))
        assert torch.equal(found.scale, scale)
