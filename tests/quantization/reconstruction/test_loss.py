"""The reconstruction losses against NumPy and autograd: value and gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genie_cli.quantization.reconstruction.loss import kl_divergence, output_weights, squared_error


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("target_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squared_error(dtype: torch.dtype, target_dtype: torch.dtype, channels_last: bool):
    output, target = values(70, 16, 16, 16).to(dtype), values(70, 16, 16, 16, seed=1).to(target_dtype)
    if channels_last:
        output, target = (x.contiguous(memory_format=torch.channels_last) for x in (output, target))
    loss, gradient = squared_error(output, target)
    difference = output.double().numpy() - target.double().numpy()
    places = 70 * 16 * 16
    assert loss.dtype == torch.float32 and gradient.dtype == dtype
    assert loss.item() == pytest.approx((difference**2).sum() / places, rel=1e-5)
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8 if target_dtype == torch.float32 else 2**-7
    np.testing.assert_allclose(gradient.double().numpy(), 2 * difference / places, rtol=tolerance, atol=1e-9)


def test_squared_error_of_close_values_is_exact_in_bfloat16():
    target = values(40, 8, 9, 9).to(torch.bfloat16)
    output = (target * (1 + 0.1 * values(40, 8, 9, 9, seed=1))).to(torch.bfloat16)
    difference = output.double() - target.double()
    loss, gradient = squared_error(output, target)
    places = 40 * 9 * 9
    assert loss.item() == pytest.approx(difference.square().sum().item() / places, rel=1e-6)
    wanted = (difference.float() * (2 / places)).to(torch.bfloat16)
    assert torch.equal(gradient, wanted)


def test_squared_error_of_mixed_layouts_and_of_a_matrix():
    output, target = values(4, 3, 5, 2), values(4, 3, 5, 2, seed=1)
    wanted = ((output - target) ** 2).sum().item() / (4 * 5 * 2)
    mixed = output.contiguous(memory_format=torch.channels_last)
    assert squared_error(mixed, target)[0].item() == pytest.approx(wanted, rel=1e-5)
    flat = [x.flatten(1) for x in (output, target)]
    assert squared_error(*flat)[0].item() == pytest.approx(wanted * 10, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kl_divergence(dtype: torch.dtype):
    output, target = (3 * values(8, 10)).to(dtype), 3 * values(8, 10, seed=1)
    loss, gradient = kl_divergence(output, target)
    plain = output.double().requires_grad_()
    own, wanted = torch.softmax(plain, 1), torch.softmax(target.double(), 1)
    divergence = (wanted * (wanted.log() - own.log())).sum() / 8
    divergence.backward()
    assert loss.item() == pytest.approx(divergence.item(), rel=1e-5)
    assert plain.grad is not None and gradient.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(gradient.double(), plain.grad, rtol=tolerance, atol=1e-7)


def test_squared_error_of_one_value_per_image():
    output, target = values(9), values(9, seed=1)
    loss, gradient = squared_error(output, target)
    assert loss.item() == pytest.approx(float((output - target).square().mean()), rel=1e-6)
    torch.testing.assert_close(gradient, 2 * (output - target) / 9)


ENERGIES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6)


@given(ENERGIES, st.floats(1e-3, 1e3))
def test_weights_make_outputs_count_relative_to_their_energy(energies: list[float], scale: float):
    weights = output_weights(energies)
    shares = [weight * energy for weight, energy in zip(weights, energies, strict=True)]
    assert shares == pytest.approx([sum(energies) / len(energies)] * len(energies))  # each has the same say
    assert sum(shares) == pytest.approx(sum(energies))  # of outputs that are all 0 the loss is that without weights
    assert output_weights([energy * scale for energy in energies]) == pytest.approx(weights)


@pytest.mark.parametrize("energies", [[7.3], [0.0], [2.5, 2.5], [0.0, 0.0]])
def test_weights_of_one_output_or_of_equal_ones_are_exactly_one(energies: list[float]):
    assert output_weights(energies) == (1.0,) * len(energies)


def test_the_weight_of_an_output_without_energy_is_bounded():
    assert output_weights([0.0, 2.0]) == pytest.approx((1e6, 0.5))
