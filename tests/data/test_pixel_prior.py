"""The pixel prior: where it lies for each normalisation, in closed form, and bits that stay where it is standard."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genie_cli.config import InputSpec
from genie_cli.data.pixel_prior import PixelPrior

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def spec(mean: tuple[float, ...], std: tuple[float, ...]) -> InputSpec:
    return InputSpec(num_channels=len(mean), size=8, mean=mean, std=std)


@pytest.mark.parametrize(
    "own", [InputSpec(), spec(MEAN, STD), spec((0.449,), (0.226,)), spec((0.449,) * 4, (0.226,) * 4)], ids=str
)
def test_with_imagenets_normalisation_the_prior_is_exactly_standard(own: InputSpec) -> None:
    prior = PixelPrior.of_input(own)
    assert prior == PixelPrior((0.0,) * own.num_channels, (1.0,) * own.num_channels)
    images = torch.randn(2, own.num_channels, 8, 8)
    assert prior.placement(CPU)(images) is images


def test_gray_is_the_average_of_the_colours() -> None:
    gray = PixelPrior.of_pixels(1)
    assert gray.mean == pytest.approx([np.mean(MEAN)]) and gray.std == pytest.approx([np.mean(STD)])
    assert PixelPrior.of_pixels(2) == PixelPrior(gray.mean * 2, gray.std * 2)


def test_an_input_of_plain_pixels_has_the_prior_of_pixels() -> None:
    assert PixelPrior.of_input(spec((0.0,) * 3, (1.0,) * 3)) == PixelPrior(MEAN, STD)


def test_an_input_of_bytes_has_it_255_times_as_large() -> None:
    prior = PixelPrior.of_input(spec((0.0,) * 3, (1 / 255,) * 3))
    assert prior.mean == pytest.approx([255 * mean for mean in MEAN])
    assert prior.std == pytest.approx([255 * std for std in STD])


@pytest.mark.parametrize("place", range(3))
def test_one_other_channel_is_enough_to_move_the_prior(place: int) -> None:
    other = tuple(value + 0.125 * (channel == place) for channel, value in enumerate(MEAN))
    for own in (spec(other, STD), spec(MEAN, other)):
        assert not PixelPrior.of_input(own).is_standard


channels = st.integers(1, 4)


@st.composite
def specs(draw: st.DrawFn) -> InputSpec:
    count = draw(channels)
    mean = draw(st.tuples(*[st.floats(-1, 2)] * count))
    return spec(mean, draw(st.tuples(*[st.floats(1e-3, 100)] * count)))


@given(own=specs(), seed=st.integers(0, 99))
def test_the_pixels_do_not_depend_on_the_normalisation(own: InputSpec, seed: int) -> None:
    images = torch.randn(2, own.num_channels, 3, 5, generator=torch.Generator().manual_seed(seed))
    placed = PixelPrior.of_input(own).placement(CPU)(images)
    assert placed.dtype == torch.float32

    def per_channel(values: tuple[float, ...]) -> np.ndarray:
        return np.reshape(values, (-1, 1, 1))

    pixels = placed.double().numpy() * per_channel(own.std) + per_channel(own.mean)
    mean, std = (MEAN, STD) if own.num_channels == 3 else ((0.449,) * own.num_channels, (0.226,) * own.num_channels)
    np.testing.assert_allclose(pixels, images.double().numpy() * per_channel(std) + per_channel(mean), atol=1e-5)
