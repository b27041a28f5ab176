"""Least squares: against NumPy's, and against rounding that is written out column by column."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genie_cli.quantization.closed_form.least_squares import RIDGE, compensated_codes, corrected_weight
from genie_cli.quantization.closed_form.moments import Moments
from genie_cli.runtime.distribution import SOLO
from genie_cli.student.formats import weight_format
from genie_cli.student.grid import quantize_weight, weight_grid


def inputs(seed: int, groups: int, size: int, count: int = 400) -> tuple[Tensor, Tensor]:
    """Patches ``[N, G, K]`` whose numbers depend on one another, and the same with errors."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(groups, size, size, generator=generator, dtype=torch.float64)
    full = torch.einsum("ngk,gkj->ngj", torch.randn(count, groups, size, generator=generator).double(), mixing) + 0.5
    return full, full + 0.5 * torch.randn(full.shape, generator=generator).double()


def moments(full: Tensor, quantized: Tensor, parts: int = 3) -> Moments:
    found = Moments()
    for own, other in zip(full.chunk(parts), quantized.chunk(parts), strict=True):
        found.add(own, other)
    return found.summed(SOLO)


@given(seed=st.integers(0, 1000), groups=st.sampled_from([1, 3]), size=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_the_corrected_weight_is_that_of_ridge_regression(seed: int, groups: int, size: int):
    full, quantized = inputs(seed, groups, size)
    weight = torch.randn(groups, 4, size, generator=torch.Generator().manual_seed(seed)).double()
    corrected = corrected_weight(weight, *moments(full, quantized).products(centred=True), 400)
    for g in range(groups):
        f, q = (x[:, g] - x[:, g].mean(0) for x in (full, quantized))
        ridge = max(RIDGE, size / 400) * float(q.square().mean())
        # rows below the data say what it costs to leave the weight
        stay = np.sqrt(ridge * len(q)) * np.eye(size)
        wanted = np.linalg.lstsq(
            np.vstack([q.numpy(), stay]), np.vstack([(f @ weight[g].T).numpy(), stay @ weight[g].T.numpy()]), rcond=None
        )[0].T
        np.testing.assert_allclose(corrected[g].numpy(), wanted, rtol=1e-3, atol=1e-4)


def test_without_errors_of_the_inputs_the_weight_stays():
    full, _ = inputs(0, 2, 6)
    weight = torch.randn(2, 4, 6).double()
    corrected = corrected_weight(weight, *moments(full, full).products(centred=False), 400)
    torch.testing.assert_close(corrected, weight, rtol=0, atol=1e-6)


@given(seed=st.integers(0, 1000), groups=st.sampled_from([1, 2]), bits=st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_codes_are_those_of_rounding_one_input_after_another(seed: int, groups: int, bits: int):
    size, format = 7, weight_format(bits)
    _, quantized = inputs(seed, groups, size)
    second, _ = moments(quantized, quantized).products(centred=False)
    weight = torch.randn(groups * 5, size, generator=torch.Generator().manual_seed(seed))
    scale, zero_point = weight_grid(weight, format, "search")
    shape = (groups, 5, 1)
    codes = compensated_codes(
        weight.double().view(groups, 5, size), second, 400, scale.view(shape), zero_point.view(shape), format
    )
    for g in range(groups):
        damped = second[g] + size / 400 * second[g].diagonal().mean() * torch.eye(size)
        order = damped.diagonal().argsort(descending=True)
        for row in range(5):
            own = g * 5 + row
            left, codes_left = weight[own].double().clone(), codes[g, row]
            open_ = order.tolist()
            for place in order.tolist():
                step, zero = float(scale[own]), float(zero_point[own])
                code = round(min(max(np.round(float(left[place]) / step) + zero, format.quant_min), format.quant_max))
                assert int(codes_left[place]) == code
                # the inputs that are left take the change that is best for them: OBS on the inverse of their products
                inverse = torch.linalg.inv(damped[open_][:, open_])
                error = (left[place] - (code - zero) * step) / inverse[0, 0]
                left[open_] -= error * inverse[:, 0]
                open_ = open_[1:]


def test_inputs_that_do_not_depend_on_one_another_are_rounded_to_nearest():
    format = weight_format(3)
    weight = torch.randn(6, 200)  # more inputs than one block has
    scale, zero_point = weight_grid(weight, format, "search")
    second = torch.diag(torch.rand(200).double() + 0.5).unsqueeze(0)
    codes = compensated_codes(weight.double().unsqueeze(0), second, 500, scale[None], zero_point[None], format)
    nearest = ((weight / scale).round() + zero_point).clamp(format.quant_min, format.quant_max)
    assert (codes[0] == nearest).float().mean() > 0.999  # ties aside


def test_blocks_of_columns_change_nothing(monkeypatch):
    from genie_cli.quantization.closed_form import least_squares

    _, quantized = inputs(1, 1, 50, count=500)
    second, _ = moments(quantized, quantized).products(centred=False)
    weight, format = torch.randn(8, 50), weight_format(2)
    scale, zero_point = weight_grid(weight, format, "search")
    arguments = (weight.double().unsqueeze(0), second, 500, scale[None], zero_point[None], format)
    whole = compensated_codes(*arguments)
    monkeypatch.setattr(least_squares, "_BLOCK", 7)
    assert (compensated_codes(*arguments) == whole).float().mean() > 0.99


def test_dead_inputs_are_no_error():
    dead = torch.zeros(1, 4, 4, dtype=torch.float64)
    weight = torch.randn(1, 3, 4).double()
    corrected = corrected_weight(weight, dead, dead, 10)
    torch.testing.assert_close(corrected, weight)
    scale, zero_point = weight_grid(weight[0].float(), weight_format(4), "search")
    codes = compensated_codes(weight, dead, 10, scale[None], zero_point[None], weight_format(4))
    assert codes.isfinite().all()


@given(constant=st.floats(1e-3, 1e5), size=st.integers(1, 9), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_constant_inputs_leave_their_weights_as_they_are(constant: float, size: int, seed: int):
    full, quantized = inputs(seed, 2, size, count=5000)
    quantized[:, 0] = constant  # a group of constants, such as dead channels leave behind a batch norm
    quantized[:, 1, 0] = -constant  # and one among others
    second, cross = moments(full, quantized).products(centred=True)
    weight = torch.randn(2, 3, size, generator=torch.Generator().manual_seed(seed)).double()
    corrected = corrected_weight(weight, second, cross, 5000)
    torch.testing.assert_close(corrected[0], weight[0])
    torch.testing.assert_close(corrected[1, :, 0], weight[1, :, 0])
    scale, zero_point = weight_grid(corrected.float().reshape(6, size), weight_format(4), "search")
    grid = (scale.view(2, 3, 1), zero_point.view(2, 3, 1))
    codes = compensated_codes(corrected, second, 5000, *grid, weight_format(4))
    nearest = quantize_weight(corrected[0], scale[:3].double(), zero_point[:3].double(), weight_format(4))
    assert codes.isfinite().all()
    assert torch.equal(codes[0], nearest)


def test_of_few_positions_the_weight_is_not_made_for_them_alone():
    # 32 images of a classifier of 256 inputs: what is right for them alone is wrong for all others
    full, quantized = inputs(3, 1, 256, count=1032)
    weight = torch.randn(1, 10, 256).double()
    products = moments(full[:32], quantized[:32]).products(centred=True)
    few, many = (corrected_weight(weight, *products, count)[0] for count in (32, 10**6))
    wanted = full[32:, 0] @ weight[0].T

    def error(own: Tensor) -> float:
        found = quantized[32:, 0] @ own.T
        return float((found - found.mean(0) - wanted + wanted.mean(0)).square().sum())

    assert error(few) < 1.1 * error(weight[0])
    assert error(many) > 1.1 * error(few)  # the ridge for many positions would let it be made for these 32
