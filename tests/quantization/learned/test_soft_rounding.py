"""GENIE-M's soft-rounded weight against NumPy: values, gradients, what is frozen, hard rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genie_cli.config import QuantizeConfig
from genie_cli.quantization.learned.soft_rounding import (
    SoftRoundedWeight,
    largest_rate,
    rectified_sigmoid,
    rounding_beta,
    rounding_penalty,
)
from genie_cli.quantization.reconstruction.parameters import UnitParameters
from genie_cli.student.formats import activation_format, weight_format
from genie_cli.student.grid import minmax_weight_grid, search_weight_grid

SHAPES = {"conv": (6, 4, 3, 3), "depthwise": (6, 1, 3, 3), "linear": (6, 11), "one-channel": (1, 20, 3, 1)}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def make(shape: tuple[int, ...], bits: int = 3, offset_scale: float = 1.0, range_: str = "search") -> SoftRoundedWeight:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.3
    search = search_weight_grid if range_ == "search" else minmax_weight_grid
    scale, zero_point = search(weight, weight_format(bits))
    learned = SoftRoundedWeight(weight, scale, zero_point, weight_format(bits), torch.full_like(scale, offset_scale))
    learned.original = weight
    return learned


def step_size(learned: SoftRoundedWeight) -> Tensor:
    return learned.start + learned.offset_scale * learned.offset


def weight_and_softbits(learned: SoftRoundedWeight) -> tuple[Tensor, Tensor]:
    softbits, _ = rectified_sigmoid(learned.elements)
    return learned.parts(softbits, step_size(learned)).weight, softbits


def perturb(learned: SoftRoundedWeight, seed: int = 1) -> SoftRoundedWeight:
    """Logits all over the place and steps off their start, as after some training."""
    draws = torch.Generator().manual_seed(seed)
    learned.elements.copy_(torch.randn(learned.elements.shape, generator=draws) * 3)
    learned.offset.copy_(torch.randn(learned.offset.shape, generator=draws) * 0.1 * learned.start)
    return learned


def numpy_parts(learned: SoftRoundedWeight) -> dict[str, np.ndarray]:
    """Eq. 10 in float64, but for the floor, whose argument is the float32 quotient."""
    rows = [1] * (learned.original.dim() - 1)
    start = learned.start.numpy().reshape(-1, *rows)
    zero_point = learned.zero_point.numpy().reshape(-1, *rows)
    logits = learned.elements.double().numpy()
    base = np.floor(learned.original.numpy() / start) + zero_point
    softbits = np.clip(1.2 / (1 + np.exp(-logits)) - 0.1, 0, 1)
    step = start.astype(np.float64) + learned.offset_scale.numpy() * learned.offset.double().numpy()
    total = base + softbits
    codes = np.clip(total, 0, 2**learned.format.bits - 1)
    inside = (total >= 0) & (total <= 2**learned.format.bits - 1)
    at_an_end = (total == 0) | (total == 2**learned.format.bits - 1)
    return {
        "base": base, "softbits": softbits, "step": step, "inside": inside, "logits": logits,
        "at_an_end": at_an_end,
        "steps_away": codes - zero_point, "weight": (codes - zero_point) * step, "zero_point": zero_point,
    }  # fmt: skip


@shapes
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_soft_weight_and_softbits_are_those_of_numpy(shape: tuple[int, ...], bits: int):
    learned = perturb(make(shape, bits, offset_scale=0.7))
    wanted = numpy_parts(learned)
    weight, softbits = weight_and_softbits(learned)
    assert weight.shape == softbits.shape == shape and weight.dtype == torch.float32
    np.testing.assert_allclose(softbits.detach().numpy(), wanted["softbits"], atol=1e-6)
    np.testing.assert_allclose(weight.detach().numpy(), wanted["weight"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(step_size(learned).numpy(), wanted["step"], rtol=1e-6)
    assert (softbits == 0).any() and (softbits == 1).any()  # the stretch reaches both ends


@shapes
def test_weight_starts_at_the_checkpoint_where_the_grid_holds_it(shape: tuple[int, ...]):
    learned = make(shape, bits=3)
    weight, _ = weight_and_softbits(learned)
    away = ((weight - learned.original) / learned.start).abs()
    parts = numpy_parts(learned)
    assert parts["inside"].mean() > 0.5
    # the softbit starts within 1e-4 of the fraction, so that it is not stuck at the clip
    assert away[torch.from_numpy(parts["inside"])].max() < 1.1e-4
    fraction = learned.original / learned.start - (learned.original / learned.start).floor()
    free = torch.from_numpy(parts["inside"]) & (fraction > 1e-3) & (fraction < 1 - 1e-3)
    assert away[free].max() < 1e-5


def test_a_weight_on_the_grid_starts_there_and_can_move_both_ways():
    scale = torch.full((2, 1), 0.25)
    weight = (torch.tensor([[0.0, 1, 2, 3], [-4, -1, 0, 3]])) * scale
    learned = SoftRoundedWeight(weight, scale, torch.tensor([[0.0], [4.0]]), weight_format(3), torch.ones(2, 1))
    soft, _ = weight_and_softbits(learned)
    torch.testing.assert_close(soft, weight, rtol=0, atol=1.1e-4 * 0.25)
    _, slope = rectified_sigmoid(learned.elements)
    assert (slope > 0).all()


@shapes
def test_gradients_are_those_of_equation_11(shape: tuple[int, ...]):
    learned = perturb(make(shape, bits=2, offset_scale=0.7))
    parts = numpy_parts(learned)
    assert not parts["inside"].all()
    incoming = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    unit = UnitParameters({"layer": learned}, {}, QuantizeConfig(), torch.device("cpu"))
    (weight,) = unit.make(torch.float32, None).weights
    weight.backward(incoming)
    assert unit.elements.grad is not None and unit.offsets.grad is not None
    grad_logits, grad_offset = unit.elements.grad.view(shape), unit.offsets.grad.view(learned.offset.shape)
    grad_bits = incoming * learned.parts(rectified_sigmoid(learned.elements)[0], step_size(learned)).slope
    grads = incoming.double().numpy()
    # dW_q / dV = s, none where clipped
    wanted_bits = grads * parts["step"] * parts["inside"]
    strict = ~parts["at_an_end"]  # there PyTorch's versions differ, and a softbit of 0 or 1 passes nothing on
    np.testing.assert_allclose(grad_bits.numpy()[strict], wanted_bits[strict], rtol=1e-5, atol=1e-7)
    # dW_q / ds = B + V, without the zero point, clipped to the grid; s = s_0 + offset_scale * offset
    axes = tuple(range(1, len(shape)))
    wanted_offset = 0.7 * (grads * parts["steps_away"]).sum(axes, keepdims=True)
    np.testing.assert_allclose(grad_offset.numpy(), wanted_offset, rtol=1e-4, atol=1e-5)
    # dV / dlogit = 1.2 sigmoid', none where the rectified sigmoid is flat
    sigmoid = 1 / (1 + np.exp(-parts["logits"]))
    open_ = (parts["softbits"] > 0) & (parts["softbits"] < 1)
    wanted_logits = wanted_bits * 1.2 * sigmoid * (1 - sigmoid) * open_
    np.testing.assert_allclose(grad_logits.numpy(), wanted_logits, rtol=1e-4, atol=1e-6)


def test_what_learns_are_logits_and_steps_alone():
    learned = make(SHAPES["conv"])
    unit = UnitParameters({"layer": learned}, {}, QuantizeConfig(), torch.device("cpu"))
    assert [tuple(tensor.shape) for tensor in unit.tensors()] == [(6 * 4 * 3 * 3,), (6,)]
    assert not any(buffer.requires_grad for buffer in learned.buffers())


def test_base_stays_when_the_step_changes():
    learned = make(SHAPES["conv"], bits=4, range_="minmax")
    before, softbits = (t.detach() for t in weight_and_softbits(learned))
    codes = learned.harden().codes
    learned.offset.copy_(0.5 * learned.start)  # steps grow by half: floor(W / s) would be smaller
    after, softbits_after = (t.detach() for t in weight_and_softbits(learned))
    torch.testing.assert_close(after, 1.5 * before)
    assert torch.equal(softbits_after, softbits)
    hardened = learned.harden()
    assert torch.equal(hardened.codes, codes)
    torch.testing.assert_close(hardened.scale, 1.5 * learned.start.flatten(1))


@shapes
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_hard_codes_are_base_plus_the_sign_of_the_logit(shape: tuple[int, ...], bits: int):
    learned = perturb(make(shape, bits))
    learned.elements.data.flatten()[0] = 0.0  # counts as rounding up
    parts = numpy_parts(learned)
    hardened = learned.harden()
    wanted = np.clip(parts["base"] + (parts["logits"] >= 0), 0, 2**bits - 1)
    assert hardened.codes.dtype == torch.uint8 and hardened.codes.shape == shape
    np.testing.assert_array_equal(hardened.codes.numpy(), wanted)
    assert hardened.scale.shape == hardened.zero_point.shape == (shape[0], 1)
    np.testing.assert_allclose(hardened.scale.numpy(), parts["step"].reshape(-1, 1), rtol=1e-6)
    np.testing.assert_array_equal(hardened.zero_point.numpy(), parts["zero_point"].reshape(-1, 1))
    restored = (wanted - parts["zero_point"]) * parts["step"]
    np.testing.assert_allclose(hardened().numpy(), restored, rtol=1e-5, atol=1e-7)


def test_hard_rounding_of_saturated_logits_is_the_soft_weight():
    learned = perturb(make(SHAPES["conv"], bits=4))
    learned.elements.copy_(learned.elements.sign() * 20)
    torch.testing.assert_close(learned.harden()(), weight_and_softbits(learned)[0])


def test_hardening_at_the_start_is_rounding_to_nearest():
    learned = make(SHAPES["conv"], bits=4)
    nearest = (learned.original / learned.start).round() + learned.zero_point
    assert torch.equal(learned.harden().codes.float(), nearest.clamp(0, 15))


# regularizer


@given(
    softbits=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30),
    beta=st.floats(1, 25),
)
def test_regularizer_is_that_of_numpy(softbits: list[float], beta: float):
    wanted = (1 - np.abs(2 * np.asarray(softbits) - 1) ** beta).sum()
    assert rounding_penalty(torch.tensor(softbits), beta)[0].item() == pytest.approx(wanted, abs=1e-4)


def test_regularizer_is_zero_at_the_ends_and_pushes_apart():
    assert rounding_penalty(torch.tensor([0.0, 1.0, 1.0]), 2.0)[0].item() == 0
    _, grad = rounding_penalty(torch.tensor([0.2, 0.5, 0.9]), 3.0)
    assert grad[0] > 0 and grad[1] == 0 and grad[2] < 0
    np.testing.assert_allclose(grad.numpy(), [6 * 0.36, 0, -6 * 0.64], rtol=1e-5)


@pytest.mark.parametrize("beta", [2.0, 7.3, 20.0])
def test_regularizer_gradient_is_that_of_the_plain_formula(beta: float):
    softbits = torch.cat([torch.tensor([0.0, 0.5, 1.0]), torch.rand(200, generator=torch.Generator().manual_seed(0))])
    plain = softbits.double().requires_grad_()
    _, slope = rounding_penalty(softbits, torch.tensor(beta))
    (1 - (2 * plain - 1).abs().pow(beta)).sum().backward()
    assert plain.grad is not None
    torch.testing.assert_close(slope.double(), plain.grad, rtol=1e-4, atol=1e-5)


@given(num_steps=st.integers(1, 500), warmup=st.floats(0, 0.95), start=st.floats(2, 30), end=st.floats(0.5, 4))
def test_beta_is_linear_after_the_warm_up(num_steps: int, warmup: float, start: float, end: float):
    for step in range(num_steps):
        beta = rounding_beta(step, num_steps, warmup, start, end)
        if step < warmup * num_steps:
            assert beta is None
        else:
            done = (step - warmup * num_steps) / (num_steps - warmup * num_steps)
            assert beta == pytest.approx(start + (end - start) * done, abs=1e-9)


def test_beta_by_hand():
    assert [rounding_beta(step, 10, 0.2, 20, 2) for step in (0, 1)] == [None, None]
    assert rounding_beta(2, 10, 0.2, 20, 2) == pytest.approx(20)
    assert rounding_beta(6, 10, 0.2, 20, 2) == pytest.approx(11)
    assert rounding_beta(0, 1, 0.0, 20, 2) == pytest.approx(20)
    assert rounding_beta(0, 1, 0.2, 20, 2) is None


def test_the_largest_rate_moves_the_end_of_the_grid_by_a_twentieth_of_a_step():
    step_size = torch.tensor([[0.04], [0.002]])
    for bits in (2, 4, 8):
        for format in (weight_format(bits), activation_format(bits, signed=True)):
            moved = largest_rate(step_size, format) * (2**bits - 1) / step_size
            torch.testing.assert_close(moved, torch.full_like(moved, 0.05))
