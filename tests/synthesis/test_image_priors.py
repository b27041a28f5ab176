"""The image prior against NumPy, the crops against ``grid_sample``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from genie_cli.synthesis.image_priors import draw_crops, local_crop, smoothness_loss
from genie_cli.synthesis.image_statistics import image_statistics_loss


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# smoothness


def numpy_smoothness(images: Tensor) -> float:
    """Pixel by pixel over those with all neighbours."""
    x = images.double().numpy()
    bell = np.exp(-0.5 * np.array([-1.0, 0.0, 1.0]) ** 2)
    kernel = np.outer(bell, bell) / bell.sum() ** 2
    gaps = [
        x[:, :, i, j] - (x[:, :, i - 1 : i + 2, j - 1 : j + 2] * kernel).sum((2, 3))
        for i in range(1, x.shape[2] - 1)
        for j in range(1, x.shape[3] - 1)
    ]
    return float((np.stack(gaps) ** 2).mean())


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 8, 8), (3, 1, 3, 3), (2, 2, 5, 9)])
def test_smoothness_loss_is_that_of_numpy(shape: tuple[int, ...]):
    images = draw(*shape)
    assert smoothness_loss(images).item() == pytest.approx(numpy_smoothness(images), rel=1e-5)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(smoothness_loss(channels_last), smoothness_loss(images))


def test_flat_and_slanted_images_are_smooth():
    rows = torch.arange(8.0).view(1, 1, 8, 1) - 3
    slanted = (rows + 2 * rows.transpose(2, 3)).requires_grad_()
    loss = smoothness_loss(slanted)
    loss.backward()
    assert loss.item() < 1e-10 and float(slanted.grad.abs().max()) < 1e-6
    assert smoothness_loss(torch.full((2, 3, 8, 8), 0.7)).item() < 1e-12


def test_noise_costs_more_than_a_wave():
    wave = torch.linspace(0, 6, 32).sin().view(1, 1, 32, 1).expand(1, 1, 32, 32)
    noise = draw(1, 1, 32, 32) * wave.std()
    assert smoothness_loss(noise) > 50 * smoothness_loss(wave)


def test_gradient_of_the_smoothness_loss():
    images = draw(2, 1, 4, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(smoothness_loss, images)


# drawn crops


@given(
    low=st.floats(0.05, 1),
    prob=st.floats(0, 1),
    num_steps=st.integers(1, 5),
    batch=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_drawn_crops_lie_in_the_image(low: float, prob: float, num_steps: int, batch: int, seed: int):
    places = draw_crops(num_steps, batch, low, prob, seeded(seed))
    assert places.shape == (num_steps, batch, 3) and places.dtype == torch.float32
    top, left, side = places.double().unbind(2)
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + side <= 1 + 1e-6).all() and (left + side <= 1 + 1e-6).all()
    assert (side.square() >= low - 1e-6).all()
    assert torch.equal(places, draw_crops(num_steps, batch, low, prob, seeded(seed)))


def test_chance_and_spread_of_crops():
    places = draw_crops(100, 60, 0.5, 0.3, seeded()).double()
    cropped = places[places[..., 2] < 1]
    assert 0.27 < len(cropped) / 6000 < 0.33
    area = cropped[:, 2].square()
    assert float(area.mean()) == pytest.approx(0.75, abs=0.02) and float(area.min()) < 0.52
    places_left = cropped[:, :2] / (1 - cropped[:, 2:])
    assert float(places_left.mean()) == pytest.approx(0.5, abs=0.03)
    assert torch.unique(places[..., 2], dim=0).shape[0] == 100  # every step has its own


def test_whole_images_where_there_is_no_crop():
    whole = torch.tensor([0.0, 0.0, 1.0])
    assert torch.equal(draw_crops(3, 4, 0.5, 0.0, seeded()), whole.expand(3, 4, 3))
    assert torch.equal(draw_crops(3, 4, 1.0, 1.0, seeded()), whole.expand(3, 4, 3))


# crops


def sampled_crop(images: Tensor, places: Tensor) -> Tensor:
    """The same by an affine grid."""
    top, left, side = places.unbind(1)
    zero = torch.zeros_like(side)
    rows = torch.stack([side, zero, 2 * left + side - 1], 1), torch.stack([zero, side, 2 * top + side - 1], 1)
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (3, 1, 8, 8), (2, 2, 7, 11), (2, 3, 224, 224)])
def test_crop_is_that_of_grid_sample(shape: tuple[int, ...]):
    images = draw(*shape, dtype=torch.float64).requires_grad_()
    own_images = images.detach().clone().requires_grad_()
    places = draw_crops(1, shape[0], 0.1, 1.0, seeded(3))[0].double()
    crop, wanted = local_crop(images, places), sampled_crop(own_images, places)
    torch.testing.assert_close(crop, wanted)
    weight = draw(*shape, seed=1, dtype=torch.float64)
    (crop * weight).sum().backward()
    (wanted * weight).sum().backward()
    torch.testing.assert_close(images.grad, own_images.grad)


def test_crop_of_a_quarter_by_hand():
    images = torch.arange(64.0).view(1, 1, 8, 8)
    crop = local_crop(images, torch.tensor([[0.5, 0.0, 0.5]]))
    wanted = F.interpolate(images[:, :, 4:, :4], size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(crop[:, :, 1:, :-1], wanted[:, :, 1:, :-1])  # but for what lies beside the crop
    assert float(crop[0, 0, -1, 0]) == 56.0


def test_no_crop_changes_no_bit():
    images = draw(3, 2, 9, 8)
    places = torch.tensor([[0.0, 0.0, 1.0]]).expand(3, 3)
    assert torch.equal(local_crop(images, places), images)


@given(seed=st.integers(0, 99), low=st.floats(0.05, 1))
@settings(deadline=None, max_examples=30)
def test_crops_stay_within_the_images_values(seed: int, low: float):
    images = draw(3, 1, 8, 8, seed=seed)
    crop = local_crop(images, draw_crops(1, 3, low, 1.0, seeded(seed))[0])
    assert crop.shape == images.shape and crop.dtype == torch.float32
    assert (crop.amax((1, 2, 3)) <= images.amax((1, 2, 3)) + 1e-5).all()
    assert (crop.amin((1, 2, 3)) >= images.amin((1, 2, 3)) - 1e-5).all()
    flat = local_crop(torch.full((3, 1, 8, 8), 0.25), draw_crops(1, 3, low, 1.0, seeded(seed))[0])
    torch.testing.assert_close(flat, torch.full((3, 1, 8, 8), 0.25))


def test_each_image_has_its_own_crop():
    images = draw(1, 2, 8, 8).expand(3, 2, 8, 8)
    places = torch.tensor([[0.0, 0.0, 1.0], [0.1, 0.3, 0.6], [0.0, 0.0, 1.0]])
    crop = local_crop(images, places)
    assert torch.equal(crop[0], crop[2]) and torch.equal(crop[0], images[0]) and not torch.equal(crop[0], crop[1])


def test_gradient_of_a_crop():
    images = draw(2, 1, 4, 3, dtype=torch.float64).requires_grad_()
    places = torch.tensor([[0.2, 0.1, 0.55], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: local_crop(x, places), images)


def test_statistics_of_an_image_of_one_pixel_are_finite():
    """One number has no deviation: the unbiased estimate would divide by zero."""
    images = torch.tensor([0.5, -1.0]).view(1, 2, 1, 1).requires_grad_()
    loss = image_statistics_loss(images)
    loss.backward()
    assert images.grad is not None and images.grad.isfinite().all()
    assert loss.item() == pytest.approx(0.25 + 1 + 2, abs=1e-4)
