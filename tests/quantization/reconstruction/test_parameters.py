"""What learns in a unit as two flat tensors: against its layers and sites one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genie_cli.config import QuantizeConfig
from genie_cli.quantization.learned.activation import LearnedActivationQuantizer
from genie_cli.quantization.learned.soft_rounding import SoftRoundedWeight, rectified_sigmoid, rounding_penalty
from genie_cli.quantization.learned.straight_through_weight import StraightThroughWeight
from genie_cli.quantization.learned.weight import LearnedWeight
from genie_cli.quantization.reconstruction.parameters import UnitParameters
from genie_cli.student.formats import activation_format, weight_format
from genie_cli.student.grid import search_weight_grid
from tests.support import CPU

SHAPES = {"conv": (6, 4, 3, 3), "depthwise": (5, 1, 3, 3), "linear": (3, 11)}
STARTS = {"in": 0.4, "mid": 0.002}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layers(kind: type[Any], offset_scale: float = 1.0) -> dict[str, LearnedWeight]:
    made = {}
    for i, (name, shape) in enumerate(SHAPES.items()):
        weight, format = draw(*shape, seed=i), weight_format(2 + 3 * i)
        scale, zero_point = search_weight_grid(weight, format)
        made[name] = kind(weight, scale, zero_point, format, torch.full_like(scale, offset_scale))
    return made


def sites() -> dict[str, LearnedActivationQuantizer]:
    format = activation_format(4, signed=False)
    return {name: LearnedActivationQuantizer(start, format, 0.5) for name, start in STARTS.items()}


def unit_of(kind: type[Any] = SoftRoundedWeight, offset_scale: float = 1.0, **options: Any) -> UnitParameters:
    rounding = "genie" if kind is SoftRoundedWeight else "adaquant"
    return UnitParameters(layers(kind, offset_scale), sites(), QuantizeConfig(**{"rounding": rounding, **options}), CPU)


def perturb(unit: UnitParameters, seed: int = 3) -> None:
    with torch.no_grad():
        unit.elements.add_(draw(len(unit.elements), seed=seed))
        unit.offsets.add_(0.01 * draw(len(unit.offsets), seed=seed + 1))
        unit.keep_step_sizes_positive()


@pytest.mark.parametrize("kind", [SoftRoundedWeight, StraightThroughWeight])
def test_made_weights_are_those_of_the_layers_one_by_one(kind: type[Any]):
    unit, twin = unit_of(kind), layers(kind)
    perturb(unit)
    made = unit.make(torch.float32, None)
    assert made.penalty is None
    elements = unit.elements.detach().split([layer.elements.numel() for layer in twin.values()])
    offsets = unit.offsets.detach().split([len(layer.start) for layer in twin.values()] + [len(STARTS)])
    for weight, layer, own, offset in zip(made.weights, twin.values(), elements, offsets, strict=False):
        values = own.view(layer.elements.shape)
        values = rectified_sigmoid(values)[0] if layer.has_softbits else values
        step_size = layer.start + layer.offset_scale * offset.view(layer.start.shape)
        torch.testing.assert_close(weight.detach(), layer.parts(values, step_size).weight, rtol=1e-5, atol=1e-6)
    assert [tuple(step.shape) for step in made.step_sizes] == [(1,)] * len(STARTS)


@pytest.mark.parametrize("kind", [SoftRoundedWeight, StraightThroughWeight])
def test_gradients_are_those_of_the_layers_one_by_one(kind: type[Any]):
    """And those of the sites: how far an offset moves a step size is its derivative."""
    unit = unit_of(kind, offset_scale=0.7)
    perturb(unit)
    twin = layers(kind, offset_scale=0.7)
    made = unit.make(torch.float32, None)
    incoming = [draw(*weight.shape, seed=9 + i) for i, weight in enumerate(made.weights)]
    torch.autograd.backward([*made.weights, *made.step_sizes], [*incoming, torch.tensor([2.0]), torch.tensor([3.0])])
    assert unit.elements.grad is not None and unit.offsets.grad is not None
    sizes = [layer.elements.numel() for layer in twin.values()]
    channels = [len(layer.start) for layer in twin.values()]
    elements, offsets = unit.elements.detach().split(sizes), unit.offsets.detach().split([*channels, len(STARTS)])
    grads = unit.elements.grad.split(sizes), unit.offsets.grad.split([*channels, len(STARTS)])
    for i, layer in enumerate(twin.values()):
        values, slope = elements[i].view(layer.elements.shape), torch.ones(())
        if layer.has_softbits:
            values, slope = rectified_sigmoid(values)
        parts = layer.parts(values, layer.start + layer.offset_scale * offsets[i].view(layer.start.shape))
        torch.testing.assert_close(grads[0][i].view(values.shape), incoming[i] * parts.slope * slope)
        wanted = 0.7 * (incoming[i] * parts.step_slope).flatten(1).sum(1)
        torch.testing.assert_close(grads[1][i], wanted)
    moved = made.step_sizes[0].detach() - 0.4, made.step_sizes[1].detach() - 0.002
    for grad, by, moves, offset in zip(grads[1][-1], (2.0, 3.0), moved, offsets[-1], strict=True):
        assert grad.item() == pytest.approx(by * (moves / offset).item(), rel=1e-2)


def test_the_penalty_joins_the_gradient_of_the_softbits():
    unit, beta = unit_of(), torch.tensor(5.0)
    perturb(unit)
    made = unit.make(torch.float32, beta)
    softbits, slope = rectified_sigmoid(unit.elements.detach())
    value, penalty_slope = rounding_penalty(softbits, beta)
    assert made.penalty is not None and made.penalty.item() == pytest.approx(value.item(), rel=1e-6)
    made.penalty.backward(torch.tensor(0.5))
    torch.testing.assert_close(unit.elements.grad, 0.5 * penalty_slope * slope)
    assert unit_of(StraightThroughWeight).make(torch.float32, beta).penalty is None


def test_weights_come_in_the_arithmetic_of_the_step():
    made, exact = unit_of().make(torch.bfloat16, None), unit_of().make(torch.float32, None)
    for weight, own in zip(made.weights, exact.weights, strict=True):
        assert weight.dtype == torch.bfloat16 and torch.equal(weight, own.bfloat16())
    assert all(step.dtype == torch.float32 for step in made.step_sizes)


def test_rates_move_step_sizes_as_the_configuration_says():
    """An optimizer that moves every offset by its rate moves sites by theirs, and none by more than the grid allows."""
    unit = unit_of(weight_step_lr=1e-4, activation_step_lr=4e-5, num_steps=20000)
    (elements, offsets) = unit.groups()
    assert (float(elements["lr"]), elements["decays"]) == (pytest.approx(1e-3), False)
    assert (float(offsets["lr"]), offsets["decays"]) == (pytest.approx(1e-4), True)
    with torch.no_grad():
        unit.offsets.add_(offsets["lr"])
    wide, narrow = (step.item() for step in unit.make(torch.float32, None).step_sizes)
    assert wide - 0.4 == pytest.approx(4e-5, rel=1e-2)
    assert narrow - 0.002 == pytest.approx(0.05 * 0.002 / 15, rel=1e-2)


@pytest.mark.parametrize(
    ("options", "learning"),
    [
        ({}, (True, True)),
        ({"rounding": "adaround"}, (True, True)),  # the sites' step sizes alone
        ({"rounding": "adaround", "activation_step_lr": 0.0}, (True, False)),
        ({"rounding": "nearest"}, (False, True)),
    ],
)
def test_what_has_no_rate_stays_out(options: dict[str, Any], learning: tuple[bool, bool]):
    kind = StraightThroughWeight if options.get("rounding") == "nearest" else SoftRoundedWeight
    unit = unit_of(kind, **options)
    assert tuple(tensor.requires_grad for tensor in unit.tensors()) == learning
    assert len(unit.groups()) == sum(learning)
    if options.get("rounding") in ("adaround", "nearest") and learning[1]:
        before = unit.make(torch.float32, None).weights
        with torch.no_grad():
            unit.offsets.add_(1.0)
        after = unit.make(torch.float32, None)
        assert all(torch.equal(a, b) for a, b in zip(before, after.weights, strict=True))
        assert all(step.item() != start for step, start in zip(after.step_sizes, STARTS.values(), strict=True))


@settings(max_examples=40, deadline=None)
@given(offset=st.floats(-1e6, 1e6, width=32), offset_scale=st.sampled_from([0.0, 1e-4, 1.0, 37.0]))
def test_a_step_never_falls_below_its_floor(offset: float, offset_scale: float):
    parameters = unit_of(offset_scale=offset_scale)
    with torch.no_grad():
        parameters.offsets.fill_(offset)
    parameters.keep_step_sizes_positive()
    parameters.write_back()
    for layer in parameters._layers:
        step_size = layer.start + layer.offset_scale * layer.offset
        wanted = torch.maximum(layer.start + offset_scale * offset, 0.01 * layer.start) if offset_scale else layer.start
        torch.testing.assert_close(step_size, wanted, rtol=1e-4, atol=0)
    for activation, start in zip(parameters._activations.values(), STARTS.values(), strict=True):
        assert activation.step_size.item() >= 0.01 * start * (1 - 1e-4)


def test_a_channel_whose_offset_has_no_scale_keeps_its_step():
    """A folded batch norm with gamma 0: the checkpoint's step moves, the folded one stays."""
    weight = draw(3, 4)
    weight[1] = 0
    scale, zero_point = search_weight_grid(weight, weight_format(4))
    layer = SoftRoundedWeight(weight, scale, zero_point, weight_format(4), torch.tensor([[1.0], [0.0], [1.0]]))
    unit = UnitParameters({"layer": layer}, {}, QuantizeConfig(), CPU)
    with torch.no_grad():
        unit.offsets.fill_(-5.0)
    unit.keep_step_sizes_positive()
    unit.write_back()
    hardened = layer.harden()
    assert hardened.scale[1] == scale[1] and torch.isfinite(layer.offset).all()
    assert torch.equal(hardened()[1], torch.zeros(4))


def test_bad_numbers_are_named():
    unit = unit_of()
    assert unit.not_finite() == []
    with torch.no_grad():
        unit.offsets[7] = torch.nan  # of the depthwise layer, behind the six of the convolution
        unit.offsets[-1] = torch.inf
        unit.elements[0] = torch.nan
    assert unit.not_finite() == ["step sizes of 'depthwise'", "step size of 'mid'", "roundings of 'conv'"]
