"""Random numbers that depend on the seed and the place of use alone."""

from __future__ import annotations

import hashlib
import itertools

import pytest
import torch
from torch import Tensor

from genie_cli.runtime.determinism import RandomMasks, derive_seed, make_generator, random_mask
from tests.support import CPU


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_derived_seeds_never_change():
    """A change would give other images and integers for the same seed."""
    assert derive_seed(0) == 2033344993903900207
    assert derive_seed(0, "latents", 3) == 3123014164628505747
    digest = hashlib.sha256(b"0\x00latents\x003").digest()
    assert derive_seed(0, "latents", 3) == int.from_bytes(digest[:8], "little") // 2


def test_places_and_seeds_are_apart():
    paths = [(), ("a",), ("b",), ("a", "b"), ("ab",), ("a", 1), ("a1",), (1, 1), (11,), ("layer1.0", 0)]
    seeds = [derive_seed(seed, *path) for seed in (0, 1, 10) for path in paths]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_of_one_place_repeat():
    def draw(*place: int | str) -> list[float]:
        return torch.rand(4, generator=make_generator(CPU, 5, *place)).tolist()

    assert draw("a") == draw("a") != draw("b")


@pytest.mark.parametrize("prob", [0.0, 1 / 256, 0.25, 0.5, 0.9, 1.0])
def test_share_of_ones_is_within_binomial_bounds(prob: float):
    like = torch.empty(100, 7, 13, 11)
    mask = random_mask(like, prob, generator())
    rounded = round(prob * 256) / 256
    bound = 5 * (rounded * (1 - rounded) / like.numel()) ** 0.5
    assert mask.dtype == torch.float32 and set(mask.unique().tolist()) <= {0.0, 1.0}
    assert abs(float(mask.double().mean()) - rounded) <= bound
    assert mask.min() >= float(prob == 1) and mask.max() <= float(prob > 0)


def test_neighbours_are_independent():
    mask = random_mask(torch.empty(400_000), 0.5, generator())
    for gap in (1, 2, 7, 8):
        agree = float((mask[gap:] == mask[:-gap]).float().mean())
        assert abs(agree - 0.5) < 0.005


LAYOUTS: dict[str, Tensor] = {
    "contiguous": torch.empty(3, 5, 4, 2),
    "channels-last": torch.empty(3, 5, 4, 2).contiguous(memory_format=torch.channels_last),
    "2d": torch.empty(3, 5),
    "transposed": torch.empty(3, 5).T,
    "scalar": torch.empty(()),
    "odd-count": torch.empty(13),
    "bfloat16": torch.empty(4, 4, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("like", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_shape_and_layout_are_those_of_the_tensor(like: Tensor):
    mask = random_mask(like, 0.5, generator())
    assert mask.shape == like.shape and mask.stride() == like.stride() and mask.dtype == like.dtype


VIEWS: dict[str, Tensor] = {
    "half-of-the-channels": torch.empty(4, 8, 6, 6)[:, 4:],
    "half-of-the-channels-last": torch.empty(4, 8, 6, 6).contiguous(memory_format=torch.channels_last)[:, :4],
    "every-other": torch.empty(40, 90)[::2],
    "expanded": torch.empty(1, 8, 6, 6).expand(4, 8, 6, 6),
}


@pytest.mark.parametrize("like", VIEWS.values(), ids=VIEWS.keys())
def test_views_with_gaps_or_repeats_get_a_mask_of_their_own(like: Tensor):
    mask = random_mask(like, 0.5, generator())
    assert mask.shape == like.shape and 0.35 < float(mask.mean()) < 0.65
    rows = [tuple(row.flatten().tolist()) for row in mask]
    assert all(a != b for a, b in itertools.combinations(rows, 2))


def test_mask_repeats_with_its_generator_and_goes_on_with_it():
    like = torch.empty(1000)
    one, two = generator(3), generator(3)
    first, second = random_mask(like, 0.5, one), random_mask(like, 0.5, one)
    assert torch.equal(first, random_mask(like, 0.5, two)) and torch.equal(second, random_mask(like, 0.5, two))
    assert not torch.equal(first, second)
    assert not torch.equal(first, random_mask(like, 0.5, generator(4)))


def test_mask_asks_for_no_gradient_and_leaves_the_global_state():
    state = torch.get_rng_state()
    assert not random_mask(torch.ones(5, requires_grad=True), 0.5, generator()).requires_grad
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("prob", [0.25, 0.5, 1.0])
def test_masks_out_of_a_pool_have_the_share_the_layout_and_differ(prob: float):
    masks = RandomMasks(prob, generator())
    like = torch.empty(16, 8, 12, 12).contiguous(memory_format=torch.channels_last)
    drawn = [masks.draw(like) for _ in range(200)]  # several pools
    assert all(mask.stride() == like.stride() and set(mask.unique().tolist()) <= {0.0, 1.0} for mask in drawn)
    per_element = torch.stack(drawn).mean(0)  # each element is 1 in its share of the draws
    spread = (prob * (1 - prob) / 200) ** 0.5
    assert (per_element - prob).abs().max() <= 6 * spread + 1e-9
    assert float(per_element.mean()) == pytest.approx(prob, abs=0.01)
    if prob < 1:
        assert len({mask.numpy().tobytes() for mask in drawn}) == 200


def test_masks_out_of_a_pool_repeat_under_a_seed_and_large_ones_are_drawn():
    like, large = torch.empty(100), torch.empty((1 << 19) + 8)
    one, two = RandomMasks(0.5, generator()), RandomMasks(0.5, generator())
    for tensor in (like, large, like):
        assert torch.equal(one.draw(tensor), two.draw(tensor))


def test_masks_of_both_precisions_come_out_of_one_pool():
    one, two = RandomMasks(0.5, generator()), RandomMasks(0.5, generator())
    for _ in range(300):  # more than a pool's
        exact, reduced = one.draw(torch.empty(5000)), two.draw(torch.empty(5000, dtype=torch.bfloat16))
        assert reduced.dtype == torch.bfloat16 and torch.equal(exact, reduced.float())
    kept = one.state()
    two.restore(kept)
    two.generator.set_state(one.generator.get_state())
    assert torch.equal(one.draw(torch.empty(5000)), two.draw(torch.empty(5000, dtype=torch.bfloat16)).float())


def test_neighbouring_draws_are_not_correlated():
    masks, like = RandomMasks(0.5, generator()), torch.empty(20_000)
    a, b = masks.draw(like), masks.draw(like)
    assert float((a == b).float().mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("threshold", [0, 1, 128, 255, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_is_its_random_bytes_below_a_threshold(threshold: int, dtype: torch.dtype):
    numel = 4099
    words = torch.empty((numel + 7) // 8, dtype=torch.int64).random_(-(2**63), None, generator=generator())
    expected = words.view(torch.uint8)[:numel].int() < threshold
    mask = random_mask(torch.empty(numel, dtype=dtype), threshold / 256, generator())
    assert mask.dtype == dtype and torch.equal(mask, expected.to(dtype))
