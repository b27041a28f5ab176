"""The integer grid against an independent NumPy implementation, and its properties."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from genie_cli.student import grid
from genie_cli.student.formats import NumberFormat, activation_format, weight_format
from genie_cli.student.grid import (
    dequantize_weight,
    fake_quantize,
    minmax_step_size,
    minmax_weight_grid,
    quantize_weight,
    search_step_size,
    search_weight_grid,
    weight_grid,
)

GRIDS = {"minmax": minmax_weight_grid, "search": search_weight_grid}
BITS = range(2, 9)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the oracle: one channel or tensor at a time, float32 where the grid is, float64 for errors


def numpy_range_grid(low: np.float32, high: np.float32, bits: int) -> tuple[np.float32, np.float32]:
    scale = np.float32((high - low) / np.float32(2**bits - 1))
    return scale, np.clip(np.rint(-low / scale), 0, 2**bits - 1).astype(np.float32)


def numpy_codes(row: np.ndarray, scale: np.float32, zero_point: np.float32, bits: int) -> np.ndarray:
    return np.clip(np.rint(row / scale) + zero_point, 0, 2**bits - 1)


def numpy_error(row: np.ndarray, scale: np.float32, zero_point: np.float32, bits: int) -> float:
    restored = (numpy_codes(row, scale, zero_point, bits) - zero_point) * scale
    return float((np.abs(row.astype(np.float64) - restored) ** 2.4).sum())


def numpy_search(row: np.ndarray, bits: int) -> float:
    """Least error over the clipping ratios."""
    low, high = min(row.min(), np.float32(0)), max(row.max(), np.float32(0))
    ratios = [np.float32(1 - i / 100) for i in range(100)]
    return min(numpy_error(row, *numpy_range_grid(low * ratio, high * ratio, bits), bits) for ratio in ratios)


def errors(weight: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> list[float]:
    rows = weight.flatten(1).numpy()
    pairs = zip(scale.flatten().numpy(), zero_point.flatten().numpy(), strict=True)
    return [numpy_error(row, s, z, bits) for row, (s, z) in zip(rows, pairs, strict=True)]


# --- weights, exact


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (3, 1, 3, 3), (1, 7), (5, 8)], ids=str)
def test_minmax_grid_is_the_oracle_s(shape: tuple[int, ...], bits: int) -> None:
    weight = normal(*shape) * torch.logspace(-3, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    weight[0] = weight[0].abs()  # a channel that does not cross zero
    before = weight.clone()
    scale, zero_point = minmax_weight_grid(weight, weight_format(bits))
    codes = quantize_weight(weight, scale, zero_point, weight_format(bits))
    assert scale.shape == zero_point.shape == (shape[0], 1)
    assert codes.shape == weight.shape
    for channel, row in enumerate(weight.flatten(1).numpy()):
        low, high = min(row.min(), np.float32(0)), max(row.max(), np.float32(0))
        expected_scale, expected_zero_point = numpy_range_grid(low, high, bits)
        assert scale[channel].item() == expected_scale
        assert zero_point[channel].item() == expected_zero_point
        expected = numpy_codes(row, expected_scale, expected_zero_point, bits)
        np.testing.assert_array_equal(codes[channel].flatten().numpy(), expected)
        restored = dequantize_weight(codes, scale, zero_point)[channel].flatten().numpy()
        np.testing.assert_array_equal(restored, (expected - expected_zero_point) * expected_scale)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("weight_range", GRIDS)
def test_the_weight_grid_is_that_of_the_range_asked_for(weight_range: Literal["search", "minmax"]) -> None:
    weight = normal(4, 30)
    found = {kind: grid(weight, weight_format(3)) for kind, grid in GRIDS.items()}
    assert not torch.equal(found["search"][0], found["minmax"][0])
    for one, other in zip(weight_grid(weight, weight_format(3), weight_range), found[weight_range], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_signed_codes_are_the_unsigned_ones_less_half_their_number(bits: int) -> None:
    weight, unsigned = normal(6, 20), weight_format(bits)
    signed = replace(unsigned, signed=True)
    grids = [minmax_weight_grid(weight, format) for format in (unsigned, signed)]
    codes = [quantize_weight(weight, *own, format) for own, format in zip(grids, (unsigned, signed), strict=True)]
    assert torch.equal(grids[1][0], grids[0][0])
    assert torch.equal(grids[1][1], grids[0][1] - 2 ** (bits - 1))
    assert torch.equal(codes[1], codes[0] - 2 ** (bits - 1))


@pytest.mark.parametrize("bits", BITS)
def test_a_symmetric_grid_reaches_both_ends_with_the_smallest_scale(bits: int) -> None:
    weight, format = normal(6, 20), weight_format(bits, "symmetric")
    weight[0], weight[1], weight[2] = weight[0].abs(), -weight[1].abs(), 0
    scale, zero_point = minmax_weight_grid(weight, format)
    assert scale.shape == (6, 1) and torch.equal(zero_point, torch.zeros(6, 1))
    low, high, half = weight.amin(1), weight.amax(1), 2 ** (bits - 1)
    expected = np.maximum(-low.clamp(max=0).numpy() / half, high.clamp(min=0).numpy() / (half - 1))
    np.testing.assert_allclose(scale.flatten().numpy(), np.where(expected == 0, 1, expected), rtol=1e-6)
    codes = quantize_weight(weight, scale, zero_point, format)
    assert codes.min() >= -half and codes.max() <= half - 1
    error = (dequantize_weight(codes, scale, zero_point) - weight).abs()
    assert bool((error <= scale * 0.5001).all())  # nothing is clipped


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_symmetric_search_finds_the_oracle_s_least_error(bits: int) -> None:
    weight, format, half = normal(5, 30), weight_format(bits, "symmetric"), 2 ** (bits - 1)
    weight[0, 0] = 30  # an outlier to clip

    def error(row: np.ndarray, scale: np.float32) -> float:
        restored = np.clip(np.rint(row / scale), -half, half - 1) * scale
        return float((np.abs(row.astype(np.float64) - restored) ** 2.4).sum())

    scale, zero_point = search_weight_grid(weight, format)
    assert not zero_point.any()
    for row, found in zip(weight.numpy(), scale.flatten().numpy(), strict=True):
        full = max(-row.min() / half, row.max() / (half - 1))
        best = min(error(row, np.float32(full * (1 - i / 100))) for i in range(100))
        np.testing.assert_allclose(error(row, found), best, rtol=1e-3)


@pytest.mark.parametrize(
    "format", [replace(weight_format(4), axis=1), replace(weight_format(4), symmetric=True)], ids=str
)
@pytest.mark.parametrize("kind", GRIDS)
def test_formats_without_a_weight_grid_are_refused(kind: str, format: NumberFormat) -> None:
    with pytest.raises(AssertionError, match="no weight grid"):
        GRIDS[kind](normal(3, 4), format)


def test_a_format_with_a_zero_point_has_no_step_size_alone() -> None:
    with pytest.raises(AssertionError, match="no step size"):
        minmax_step_size(normal(9), weight_format(4))


def test_rounding_is_half_to_even() -> None:
    weight = torch.tensor([[-1.5, -0.5, 0.5, 1.5, 2.5]])
    codes = quantize_weight(weight, torch.ones(1, 1), torch.full((1, 1), 4.0), weight_format(4))
    assert codes.tolist() == [[2, 4, 4, 6, 6]]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_search_finds_the_oracle_s_least_error(bits: int) -> None:
    weight = normal(6, 3, 3, 3)
    weight[0, 0, 0, 0] = 30  # an outlier to clip
    weight[1] = weight[1].abs()
    scale, zero_point = search_weight_grid(weight, weight_format(bits))
    best = [numpy_search(row, bits) for row in weight.flatten(1).numpy()]
    np.testing.assert_allclose(errors(weight, scale, zero_point, bits), best, rtol=1e-4)
    if bits == 2:
        assert scale[0] < minmax_weight_grid(weight, weight_format(bits))[0][0]


def test_search_in_chunks_is_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(7, 2, 3, 3)
    expected = search_weight_grid(weight, weight_format(3))
    for chunk in (1, 40):
        monkeypatch.setattr(grid, "_CHUNK", chunk)
        for one, other in zip(search_weight_grid(weight, weight_format(3)), expected, strict=True):
            assert torch.equal(one, other)


# --- weights, properties

weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 12)),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
).map(torch.from_numpy)
bits_of = st.sampled_from(BITS)
checked = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.mark.parametrize("kind", GRIDS)
@checked
@given(weight=weights, bits=bits_of)
def test_quantized_weights_are_on_the_grid(kind: str, weight: Tensor, bits: int) -> None:
    scale, zero_point = GRIDS[kind](weight, weight_format(bits))
    codes = quantize_weight(weight, scale, zero_point, weight_format(bits))
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()
    for values in (codes, zero_point):
        assert values.eq(values.round()).all()
        assert ((values >= 0) & (values <= 2**bits - 1)).all()
    restored = dequantize_weight(codes, scale, zero_point)
    assert restored[weight == 0].eq(0).all()
    assert torch.equal(quantize_weight(restored, scale, zero_point, weight_format(bits)), codes)
    assert torch.equal(
        dequantize_weight(quantize_weight(restored, scale, zero_point, weight_format(bits)), scale, zero_point),
        restored,
    )


@checked
@given(weight=weights, bits=bits_of)
def test_minmax_error_is_half_a_step(weight: Tensor, bits: int) -> None:
    scale, zero_point = minmax_weight_grid(weight, weight_format(bits))
    restored = dequantize_weight(quantize_weight(weight, scale, zero_point, weight_format(bits)), scale, zero_point)
    assert ((weight - restored).abs() <= scale * 0.5001).all()


@checked
@given(weight=weights, bits=bits_of)
def test_search_is_no_worse_than_minmax(weight: Tensor, bits: int) -> None:
    searched = errors(weight, *search_weight_grid(weight, weight_format(bits)), bits)
    full = errors(weight, *minmax_weight_grid(weight, weight_format(bits)), bits)
    for one, other in zip(searched, full, strict=True):
        assert one <= other * (1 + 1e-4)


@checked
@given(weight=weights, bits=bits_of, power=st.integers(-6, 6), negative=st.booleans())
def test_grid_of_a_multiple_is_the_multiple_of_the_grid(weight: Tensor, bits: int, power: int, negative: bool) -> None:
    """For k = +-2^power, where float32 is exact; a negative k mirrors the codes unless a zero point is a tie."""
    scale, zero_point = minmax_weight_grid(weight, weight_format(bits))
    assume((scale > 1e-25).all())
    factor = -(2.0**power) if negative else 2.0**power
    new_scale, new_zero_point = minmax_weight_grid(weight * factor, weight_format(bits))
    codes, new_codes = (
        quantize_weight(weight, scale, zero_point, weight_format(bits)),
        quantize_weight(weight * factor, new_scale, new_zero_point, weight_format(bits)),
    )
    alive = weight.abs().amax(1, keepdim=True) > 1e-24  # below, a channel counts as zero
    assert torch.equal(new_scale[alive], scale[alive] * abs(factor))
    if negative:
        share = weight.amin(1, keepdim=True).clamp(max=0) / scale
        alive &= ((share - share.floor()) - 0.5).abs() > 1e-3
        zero_point, codes = 2**bits - 1 - zero_point, 2**bits - 1 - codes
    assert torch.equal(new_zero_point[alive], zero_point[alive])
    assert torch.equal(new_codes[alive.flatten()], codes[alive.flatten()])


@pytest.mark.parametrize("factor", [3.0, -0.3, 1e-6, -1e5])
def test_search_is_scale_equivariant(factor: float) -> None:
    weight = normal(8, 30)
    scale, zero_point = search_weight_grid(weight, weight_format(4))
    new_scale, new_zero_point = search_weight_grid(weight * factor, weight_format(4))
    torch.testing.assert_close(new_scale, scale * abs(factor), rtol=1e-5, atol=0)
    assert torch.equal(new_zero_point, zero_point if factor > 0 else 15 - zero_point)


# --- weights, degenerate


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("bits", [2, 8])
def test_degenerate_channels(kind: str, bits: int) -> None:
    weight = torch.stack(
        [
            torch.zeros(4),
            torch.full((4,), 0.7),
            torch.full((4,), -0.7),
            torch.tensor([0, 0, 0, 5.0]),
            torch.full((4,), 1e-40),  # a denormal
            torch.tensor([1e-38, -1e-38, 0, 0]),
            torch.tensor([1e30, -1e30, 0, 0]),
        ]
    )
    scale, zero_point = GRIDS[kind](weight, weight_format(bits))
    codes = quantize_weight(weight, scale, zero_point, weight_format(bits))
    restored = dequantize_weight(codes, scale, zero_point)
    for values in (scale, zero_point, codes, restored):
        assert torch.isfinite(values).all()
    assert scale[[0, 4, 5]].eq(1).all()
    assert restored[[0, 4, 5]].eq(0).all()
    torch.testing.assert_close(restored[1:4], weight[1:4], rtol=1e-6, atol=0)
    assert ((restored - weight)[6].abs() <= 0.5001 * scale[6]).all()


def test_a_dead_channel_does_not_touch_its_neighbours() -> None:
    weight = normal(3, 9)
    alone = search_weight_grid(weight[1:], weight_format(4))
    weight[0] = 0
    together = search_weight_grid(weight, weight_format(4))
    assert all(torch.equal(one[1:], other) for one, other in zip(together, alone, strict=True))


# --- activations


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_fake_quantize_is_the_oracle_s(bits: int, signed: bool) -> None:
    x, step_size = normal(3, 5, 4, 4) * 3, 0.173
    before = x.clone()
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    expected = np.clip(np.rint(x.numpy() / np.float32(step_size)), low, high) * np.float32(step_size)
    for step in (step_size, torch.tensor([step_size])):
        np.testing.assert_array_equal(fake_quantize(x, step, activation_format(bits, signed)).numpy(), expected)
    assert torch.equal(x, before)
    assert len(np.unique(expected)) <= 2**bits


@checked
@given(
    values=hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-100, 100, width=32, allow_subnormal=False)),
    bits=bits_of,
    signed=st.booleans(),
)
def test_activations_are_on_the_grid(values: np.ndarray, bits: int, signed: bool) -> None:
    x = torch.from_numpy(values if signed else np.abs(values))
    format = activation_format(bits, signed)
    step_sizes = [minmax_step_size(x, format), search_step_size(x, format)]
    found = []
    for step_size in step_sizes:
        assert step_size > 0
        y = fake_quantize(x, step_size, format)
        assert torch.equal(fake_quantize(y, step_size, format), y)
        assert y[x == 0].eq(0).all()
        codes = y / step_size
        assert ((codes > format.quant_min - 0.01) & (codes < format.quant_max + 0.01)).all()
        found.append(float((x.double() - y.double()).abs().pow(2.4).sum()))
    assert found[1] <= found[0] * (1 + 1e-4)


@pytest.mark.parametrize(("bits", "signed"), [(2, False), (4, False), (4, True), (8, True)])
def test_search_step_size_finds_the_oracle_s_least_error(bits: int, signed: bool) -> None:
    values = normal(4000, seed=1) if signed else normal(4000, seed=1).relu()
    values[0] = 20  # an outlier to clip
    row = values.numpy()
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)

    def error(step_size: float) -> float:
        restored = np.clip(np.rint(row / np.float32(step_size)), low, high) * np.float32(step_size)
        return float((np.abs(row.astype(np.float64) - restored) ** 2.4).mean())

    full = 20 / high
    found = search_step_size(values, activation_format(bits, signed))
    assert found == pytest.approx(full * round(100 * found / full) / 100)
    assert error(found) == pytest.approx(min(error(full * (1 - i / 100)) for i in range(100)), rel=1e-4)
    if bits < 8:
        assert found < full


def test_extremes_set_the_candidates_of_a_sample() -> None:
    values = normal(2000, seed=2)
    extremes, format = torch.stack(torch.aminmax(values)), activation_format(4, True)
    assert search_step_size(values, format, extremes) == search_step_size(values, format)
    wide = search_step_size(values, format, 10 * extremes)
    full = 10 * float(values.abs().max()) / 7
    assert wide / full == pytest.approx(round(100 * wide / full) / 100)
    assert wide == pytest.approx(search_step_size(values, format), rel=0.2)  # the error still is that of the sample


@pytest.mark.parametrize("find", [minmax_step_size, search_step_size])
@pytest.mark.parametrize("value", [0.0, 1e-40], ids=["zeros", "denormal"])
def test_step_size_of_nothing_is_one(find: object, value: float) -> None:
    assert callable(find)
    assert find(torch.full((9,), value), activation_format(4, False)) == 1.0
    assert fake_quantize(torch.full((9,), value), 1.0, activation_format(4, False)).eq(0).all()


def test_constant_activation_is_exact() -> None:
    x, format = torch.full((9,), 0.7), activation_format(4, False)
    torch.testing.assert_close(fake_quantize(x, search_step_size(x, format), format), x, rtol=1e-6, atol=0)
