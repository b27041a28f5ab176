"""Learned activation step sizes against NumPy and the LSQ formulas, with and without dropping."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from genie_cli.quantization.learned.activation import LearnedActivationQuantizer
from genie_cli.runtime.determinism import RandomMasks
from genie_cli.student.formats import activation_format

GRIDS = [(2, False), (4, False), (4, True), (8, True)]
grids = pytest.mark.parametrize(("bits", "signed"), GRIDS, ids=[f"{b}{'s' if s else 'u'}" for b, s in GRIDS])
STEP = 0.37


def make(bits: int, signed: bool, drop_prob: float = 0.0, seed: int | None = None) -> LearnedActivationQuantizer:
    quantizer = LearnedActivationQuantizer(STEP, activation_format(bits, signed), drop_prob).train()
    quantizer.step_size.requires_grad_()
    if seed is not None:
        quantizer.masks = RandomMasks(1 - drop_prob, torch.Generator().manual_seed(seed))
    return quantizer


def values(bits: int, shape: tuple[int, ...] = (4, 6, 5, 5), seed: int = 0) -> Tensor:
    """Values of which a good part lies beyond both ends of the grid."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * STEP * 2**bits * 0.7


def numpy_parts(x: Tensor, bits: int, signed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, dx'/dx and dx'/ds (Esser et al. 2020, Eq. 2 and 3; float32 quotient, then float64)."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    scaled = (x.float().numpy() / np.float32(STEP)).astype(np.float64)
    rounded = np.round(scaled)
    inside = (rounded >= low) & (rounded <= high)
    codes = np.clip(rounded, low, high)
    return codes * np.float32(STEP), inside.astype(np.float64), np.where(inside, codes - scaled, codes)


@grids
@pytest.mark.parametrize("channels_last", [False, True])
def test_value_and_gradients_are_those_of_lsq(bits: int, signed: bool, channels_last: bool):
    x = values(bits)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    quantizer = make(bits, signed)
    out = quantizer(x)
    incoming = values(bits, seed=1)
    (out * incoming).sum().backward()
    value, grad_x, grad_s = numpy_parts(x.detach(), bits, signed)
    assert 0.05 < (grad_x == 0).mean() < 0.95  # both sides of the clip are met
    np.testing.assert_allclose(
        out.detach().numpy(), value, rtol=1e-6, atol=1e-5 * STEP
    )  # x + error: not on the grid to the bit
    assert x.grad is not None and quantizer.step_size.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), incoming.numpy() * grad_x, rtol=0, atol=0)
    wanted = (incoming.double().numpy() * grad_s).sum()
    assert quantizer.step_size.grad.shape == (1,)
    scale = np.abs(incoming.double().numpy() * grad_s).sum()
    assert quantizer.step_size.grad.item() == pytest.approx(wanted, abs=1e-5 * scale)


def test_by_hand():
    quantizer = LearnedActivationQuantizer(0.5, activation_format(2, signed=False), drop_prob=0.0)
    quantizer.step_size.requires_grad_()
    x = torch.tensor([-1.0, 0.2, 0.3, 0.7, 1.4, 9.0], requires_grad=True)
    out = quantizer(x)
    assert out.tolist() == pytest.approx([0, 0, 0.5, 0.5, 1.5, 1.5])
    out.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 1, 0]
    # q - t inside the grid, the code at its ends
    assert quantizer.step_size.grad.item() == pytest.approx(0 - 0.4 + 0.4 - 0.4 + 0.2 + 3, abs=1e-5)


def test_input_without_gradient_needs_none():
    quantizer = make(4, False)
    quantizer(values(4)).sum().backward()
    assert quantizer.step_size.grad is not None


@grids
def test_dropped_elements_pass_unchanged_without_a_step_gradient(bits: int, signed: bool):
    x = values(bits).requires_grad_()
    quantizer = make(bits, signed, drop_prob=0.5, seed=3)
    out = quantizer(x)
    value, grad_x, grad_s = numpy_parts(x.detach(), bits, signed)
    quantized = np.isclose(out.detach().numpy(), value, rtol=1e-6, atol=1e-5 * STEP)
    kept = out.detach().numpy() == x.detach().numpy()
    assert (quantized | kept).all()
    assert 0.4 < kept.mean() < 0.6
    out.sum().backward()
    assert x.grad is not None and quantizer.step_size.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), np.where(kept, 1, grad_x))
    wanted = np.where(kept, 0, grad_s)
    assert quantizer.step_size.grad.item() == pytest.approx(wanted.sum(), abs=1e-5 * np.abs(wanted).sum())


@pytest.mark.parametrize("drop_prob", [0.125, 0.5, 0.75, 1.0])
def test_share_of_dropped_elements(drop_prob: float):
    x = values(4, (40, 10, 10, 10)).abs() + 0.01
    out = make(4, False, drop_prob, seed=0)(x).detach()
    share = float((out == x).float().mean())
    assert share == pytest.approx(drop_prob, abs=5 * (drop_prob * (1 - drop_prob) / x.numel()) ** 0.5 + 1e-9)


def test_each_call_drops_other_elements_and_the_generator_repeats_them():
    x = values(4)
    quantizer = make(4, False, 0.5, seed=7)
    first, second = quantizer(x).detach(), quantizer(x).detach()
    assert not torch.equal(first, second)
    assert torch.equal(make(4, False, 0.5, seed=7)(x).detach(), first)


def test_evaluation_mode_or_no_generator_drops_nothing():
    x = values(4)
    wanted = make(4, False, 0.0)(x).detach()
    torch.testing.assert_close(make(4, False, 0.5, seed=0).eval()(x).detach(), wanted, rtol=1e-6, atol=1e-5 * STEP)
    assert torch.equal(make(4, False, 0.5)(x).detach(), wanted)
    assert not torch.equal(make(4, False, 0.5, seed=0)(x).detach(), wanted)


def test_gradients_do_not_depend_on_the_layout_of_what_comes_in():
    """Skips with slices and padding hand their gradients back in another order of the memory."""
    x = values(4).contiguous(memory_format=torch.channels_last)
    found = []
    for layout in (torch.channels_last, torch.contiguous_format):
        own, quantizer = x.clone().requires_grad_(), make(4, False, 0.5, seed=2)
        quantizer(own).backward(values(4, seed=1).contiguous(memory_format=layout))
        found.append((own.grad, quantizer.step_size.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_half_of_a_tensors_channels_can_be_dropped():
    """ShuffleNet's blocks read views with gaps."""
    view = values(4, (3, 8, 4, 4))[:, 4:].requires_grad_()
    out = make(4, False, 0.5, seed=0)(view)
    out.sum().backward()
    kept = out == view
    assert out.shape == view.shape and 0.3 < kept.float().mean() < 0.7


@grids
@pytest.mark.parametrize("drop_prob", [0.0, 0.5])
def test_bfloat16_input(bits: int, signed: bool, drop_prob: float):
    x = values(bits).bfloat16().requires_grad_()
    quantizer = make(bits, signed, drop_prob, seed=0)
    out = quantizer(x)
    assert out.dtype == torch.bfloat16
    value, grad_x, grad_s = numpy_parts(x.detach(), bits, signed)
    kept = (out == x).detach().numpy() if drop_prob else np.zeros(x.shape, bool)
    wanted = torch.from_numpy(np.where(kept, x.detach().float().numpy(), value)).bfloat16()
    torch.testing.assert_close(out.detach(), wanted)
    out.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    assert quantizer.step_size.grad is not None and quantizer.step_size.grad.dtype == torch.float32
    if not drop_prob:
        np.testing.assert_array_equal(x.grad.float().numpy(), grad_x)
        assert quantizer.step_size.grad.item() == pytest.approx(grad_s.sum(), abs=1e-4 * np.abs(grad_s).sum())


@grids
def test_hardened_quantizer_gives_the_same_values(bits: int, signed: bool):
    quantizer, x = make(bits, signed, 0.5, seed=0).eval(), values(bits)
    hardened = quantizer.harden()
    assert (hardened.format, hardened.step_size.item()) == (activation_format(bits, signed), np.float32(STEP))
    assert torch.equal(hardened(x), quantizer(x).detach())
    codes = hardened(x) / STEP
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    assert codes.min() >= low - 1e-4 and codes.max() <= high + 1e-4


def test_step_learns_the_range_of_its_input():
    """Descending the squared error from a step that is far too large comes near the best one."""
    x = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    quantizer = LearnedActivationQuantizer(0.5, activation_format(4, signed=False), drop_prob=0.0)
    optimizer = torch.optim.Adam([quantizer.step_size.requires_grad_()], lr=5e-3)
    for _ in range(150):
        loss = (quantizer(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert quantizer.step_size.item() == pytest.approx(1 / 15, rel=0.1)
