"""Brightness and contrast of each image: their distribution, and what depends on them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genie_cli.config import SynthesizeConfig
from genie_cli.synthesis.tone import Tone, batch_tone

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
MANY = 40_000


@given(brightness=st.floats(0, 0.9), contrast=st.floats(0, 0.5), seed=st.integers(0, 2**63 - 1))
def test_all_pixels_together_keep_mean_and_variance(brightness: float, contrast: float, seed: int) -> None:
    config = SynthesizeConfig(brightness_std=brightness, contrast_std=contrast, seed=seed)
    tone = Tone(0, MANY, config, CPU)
    assert bool((tone.contrast > 0).all())
    # of images with mean 0 and variance 1 each
    mean = tone.brightness.double().mean()
    square = (tone.contrast.double().square() + tone.brightness.double().square()).mean()
    assert abs(float(mean)) < 6 * 0.9 / MANY**0.5
    assert float(square) == pytest.approx(1, abs=6 * 2 / MANY**0.5)


def test_spreads_are_those_of_the_configuration() -> None:
    tone = Tone(3, MANY, SynthesizeConfig(brightness_std=0.5, contrast_std=0.3), CPU)
    assert float(tone.brightness.std()) == pytest.approx(0.5, rel=0.02)
    assert float(tone.contrast.log().std()) == pytest.approx(0.3, rel=0.02)
    # a bright image has no more contrast than a dark one
    pair = torch.stack([tone.brightness.flatten(), tone.contrast.flatten()])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.03


def test_a_batch_has_its_own_under_its_seed() -> None:
    config = SynthesizeConfig(brightness_std=0.5, contrast_std=0.3)
    images = torch.randn(4, 3, 5, 6)
    first = Tone(1, 4, config, CPU)(images)
    assert torch.equal(first, Tone(1, 4, config, CPU)(images))
    assert not torch.equal(first, Tone(2, 4, config, CPU)(images))
    assert not torch.equal(first, Tone(1, 4, config.model_copy(update={"seed": 1}), CPU)(images))


def test_an_image_changes_by_one_factor_and_one_offset() -> None:
    images = torch.randn(4, 3, 5, 6)
    toned = Tone(0, 4, SynthesizeConfig(brightness_std=0.5, contrast_std=0.3), CPU)(images)
    for before, after in zip(images.flatten(1), toned.flatten(1), strict=True):
        factor = float((after - after.mean()).norm() / (before - before.mean()).norm())
        torch.testing.assert_close(after, factor * (before - before.mean()) + after.mean(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("own", [{"brightness_std": 0.1}, {"contrast_std": 0.1}])
def test_without_spread_there_is_none(own: dict[str, float]) -> None:
    assert batch_tone(0, 4, SynthesizeConfig(), CPU) is None
    assert batch_tone(0, 4, SynthesizeConfig(**own), CPU) is not None
