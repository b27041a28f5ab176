"""Changed copies of calibration images."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genie_cli.config import QuantizeConfig
from genie_cli.quantization.augmentation import LARGEST_SHIFT, AugmentedImages, cut_and_mixed, shifted
from genie_cli.quantization.reconstruction.batches import held_out_rows

KINDS = ["flips", "shifts", "cutmix"]
SEEDS = st.integers(0, 2**16)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(num: int, height: int, width: int) -> Tensor:
    """Images ``[num, 1, H, W]`` of which every pixel has a value of its own."""
    return torch.arange(num * height * width).float().view(num, 1, height, width)


@pytest.mark.parametrize("kind", KINDS)
def test_images_come_first_and_copies_behind_them_in_any_slice(kind: str) -> None:
    images = torch.rand(5, 3, 16, 12, generator=draws(0))
    augmented = AugmentedImages(images, kind, 7)  # type: ignore[arg-type]
    every = augmented[0:10]
    assert len(augmented) == 10
    assert torch.equal(every[:5], images)
    assert not torch.equal(every[5:], images)
    for rows in (slice(0, 3), slice(3, 8), slice(6, 9), slice(9, 20)):
        assert torch.equal(augmented[rows], every[rows])
    again = AugmentedImages(images, kind, 7)[0:10]  # type: ignore[arg-type]
    assert torch.equal(again, every)
    other = AugmentedImages(images, kind, 8)[0:10]  # type: ignore[arg-type]
    assert torch.equal(other, every) == (kind == "flips")


def test_a_flip_mirrors_columns() -> None:
    images = numbered(2, 3, 4)
    assert torch.equal(AugmentedImages(images, "flips", 0)[2:4], torch.stack([image.flip(2) for image in images]))


@given(seed=SEEDS, height=st.integers(2, 40), width=st.integers(2, 40))
def test_a_shift_moves_all_pixels_alike_and_no_further_than_stated(seed: int, height: int, width: int) -> None:
    found = shifted(numbered(1, height, width), draws(seed))[0, 0]
    assert found.shape == (height, width)
    y, x = height // 2, width // 2
    down, right = int(found[y, x]) // width - y, int(found[y, x]) % width - x
    assert abs(down) <= max(1, round(height * LARGEST_SHIFT))
    assert abs(right) <= max(1, round(width * LARGEST_SHIFT))
    for i in range(height):
        for j in range(width):
            if 0 <= i + down < height and 0 <= j + right < width:
                assert found[i, j] == (i + down) * width + j + right


@given(seed=SEEDS, height=st.integers(1, 24), width=st.integers(1, 24))
def test_cutmix_takes_one_rectangle_of_the_other_image(seed: int, height: int, width: int) -> None:
    own, other = numbered(2, height, width).split(1)
    mixed = cut_and_mixed(own, other, draws(seed))
    is_other = (mixed == other)[0, 0]
    assert torch.equal(mixed, torch.where(is_other, other, own))
    rows, columns = is_other.any(1).nonzero().flatten(), is_other.any(0).nonzero().flatten()
    assert int(is_other.sum()) == len(rows) * len(columns)
    for places in (rows, columns):
        assert not len(places) or int(places[-1] - places[0]) == len(places) - 1


def test_a_row_is_held_out_with_its_copy() -> None:
    rows = held_out_rows(40, QuantizeConfig(augmentation="cutmix", holdout=0.25))
    assert len(rows) == 10
    assert torch.equal(rows[5:], rows[:5] + 20)
    assert torch.equal(rows[:5], held_out_rows(20, QuantizeConfig(holdout=0.25)))
