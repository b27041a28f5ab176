"""Synthesis: batches, seeds, schedules, and a few steps against a plain rendering of Algorithm 1."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genie_cli.config import InputSpec, SynthesizeConfig
from genie_cli.data.pixel_prior import PixelPrior
from genie_cli.errors import InputError
from genie_cli.models.graph.tensors import named_tensors
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.runtime.determinism import derive_seed, make_generator
from genie_cli.runtime.progress import Advanced, Event, StageFinished, StageStarted
from genie_cli.synthesis import distill, image_source
from genie_cli.synthesis.batches import batch_sizes
from genie_cli.synthesis.schedule import PlateauSchedule
from genie_cli.synthesis.statistics_graph import statistics_graph
from genie_cli.synthesis.synthesize import Synthesis
from tests.support import CPU, stages
from tests.support.networks import StridedNet


def run(
    teacher: Teacher,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    log_every: int | None = None,
    **options: Any,
) -> Synthesis:
    config = SynthesizeConfig(**{"num_images": 4, "num_steps": 4, "batch_size": 4, **options})
    return stages.synthesize(teacher, config, device=device, dtype=dtype, log_every=log_every)


def small_teacher(num_channels: int, size: int) -> Teacher:
    pixels = PixelPrior.of_pixels(num_channels)
    spec = InputSpec(num_channels=num_channels, size=size, mean=pixels.mean, std=pixels.std)
    return make_teacher("small", StridedNet(num_channels, num_channels), spec)


@pytest.fixture(scope="module")
def small() -> Teacher:
    return small_teacher(1, 8)


# batches


@given(num_images=st.integers(2, 5000), batch_size=st.integers(2, 300))
def test_batch_sizes(num_images: int, batch_size: int):
    sizes = batch_sizes(num_images, batch_size)
    assert sum(sizes) == num_images
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 2
    fewest = math.ceil(num_images / batch_size)
    if num_images // fewest >= 2:  # it can be done without a batch of one
        assert len(sizes) == fewest and max(sizes) <= batch_size
    else:
        assert max(sizes) <= 3


@pytest.mark.parametrize(
    ("num_images", "batch_size", "sizes"),
    [
        (1024, 128, [128] * 8),
        (100, 128, [100]),
        (129, 128, [65, 64]),
        (130, 128, [65, 65]),
        (2, 128, [2]),
        (3, 2, [3]),
        (5, 2, [3, 2]),
    ],
)
def test_batch_sizes_by_hand(num_images: int, batch_size: int, sizes: list[int]):
    assert batch_sizes(num_images, batch_size) == sizes


# what comes out


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("size", [8, 30])
def test_any_input_size_and_number_of_channels(num_channels: int, size: int):
    images = run(small_teacher(num_channels, size), num_images=5, batch_size=3).images
    assert images.shape == (5, num_channels, size, size)
    assert images.dtype == torch.float32 and images.is_contiguous()
    assert torch.isfinite(images).all() and not images.requires_grad


def test_bfloat16_run_gives_finite_normalised_images(small: Teacher):
    images = run(small, torch.bfloat16, num_images=8, batch_size=8).images
    assert images.dtype == torch.float32 and torch.isfinite(images).all()
    assert images.mean().abs() < 1e-3 and (images.std() - 1).abs() < 0.05


def test_same_seed_gives_the_same_bytes_and_another_seed_others(small: Teacher):
    first, again, other = run(small, seed=3), run(small, seed=3), run(small, seed=4)
    assert torch.equal(first.images, again.images) and first.log == again.log
    assert not torch.allclose(first.images, other.images, atol=0.1)


def test_global_random_state_neither_matters_nor_changes(small: Teacher):
    torch.manual_seed(1)
    first = run(small).images
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(run(small).images, first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_depends_on_its_index_alone(small: Teacher):
    both = run(small, num_images=8).images
    alone = run(small, num_images=4).images
    assert torch.equal(both[:4], alone)
    assert not torch.allclose(both[4:], alone, atol=0.1)


def test_each_batch_and_purpose_draws_from_a_place_of_its_own(small: Teacher, monkeypatch: pytest.MonkeyPatch):
    places: list[tuple[int | str, ...]] = []

    def seed(*place: int | str) -> int:
        places.append(place)
        return derive_seed(*place)

    for module in (distill, image_source):
        monkeypatch.setattr(module, "make_generator", lambda device, *place: make_generator(device, seed(*place)))
    monkeypatch.setattr(image_source, "derive_seed", seed)
    run(small, num_images=12, seed=9)
    assert len(places) == len(set(places)) == 12  # three batches: generator, conditioning, latents, swing
    assert {place[0] for place in places} == {9} and {place[-1] for place in places} == {0, 1, 2}


def test_teacher_is_left_alone(small: Teacher):
    before = {key: value.clone() for key, value in named_tensors(small.graph).items()}
    run(small)
    assert all(torch.equal(value, before[key]) for key, value in named_tensors(small.graph).items())


def test_loss_falls(digits_teacher: Teacher):
    log = run(digits_teacher, num_images=16, batch_size=16, num_steps=60).log
    losses = [row.loss for row in log]
    assert losses[-1] < losses[0] / 2


def test_images_fit_the_teacher_better_than_those_of_an_untrained_generator(digits_teacher: Teacher):
    config = {"num_images": 16, "batch_size": 16, "swing": False}
    learned = run(digits_teacher, num_steps=60, **config).images
    untrained = run(digits_teacher, num_steps=1, **config).images
    graph = statistics_graph(digits_teacher.graph, torch.float32)
    assert torch.stack(graph(learned)).sum() < torch.stack(graph(untrained)).sum() / 2


def test_network_without_batch_norm_is_an_input_error():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    teacher = make_teacher("linear", network, InputSpec(num_channels=1, size=8, mean=(0.0,), std=(1.0,)))
    with pytest.raises(InputError, match="batch-norm"):
        run(teacher)


# Algorithm 1


def plain_images(teacher: Teacher, network: StridedNet, config: SynthesizeConfig) -> Iterator[tuple[Tensor, float]]:
    """Images and loss of each forward pass, by forward hooks, std_mean and PyTorch's optimizers; no swing."""
    generator = image_source._new_generator(teacher.input, 0, config)
    draws = make_generator(CPU, config.seed, "latents", 0)
    latents = nn.Parameter(torch.randn(config.num_images, config.latent_dim, generator=draws))
    latent_adam = torch.optim.Adam([latents], lr=config.latent_lr)
    generator_adam = torch.optim.Adam(generator.parameters(), lr=config.generator_lr)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        latent_adam, factor=config.latent_lr_factor, patience=config.latent_lr_patience, min_lr=config.latent_min_lr
    )
    decay = torch.optim.lr_scheduler.StepLR(
        generator_adam, config.generator_lr_decay_every, gamma=config.generator_lr_decay
    )
    noise = torch.randn(2, config.num_images, 1, 1, 1, generator=make_generator(CPU, config.seed, "tone", 0))
    spread = config.contrast_std
    contrast = torch.exp(spread * noise[0]) * math.exp(-(spread**2)) * math.sqrt(1 - config.brightness_std**2)
    inputs: list[tuple[nn.Module, Tensor]] = []
    for norm in (network.bn1, network.bn2):
        norm.register_forward_pre_hook(lambda layer, args: inputs.append((layer, args[0])))
    network.eval().requires_grad_(False)
    while True:
        inputs.clear()
        images = generator(latents)
        seen = contrast * images + config.brightness_std * noise[1]
        network(seen)
        std, mean = torch.std_mean(images, (2, 3))
        loss = config.image_loss_weight * (mean.square().sum() + (std - 1).square().sum()) / len(images)
        for layer, x in inputs:
            std, mean = torch.std_mean(x, (0, 2, 3))
            gap = (mean - layer.running_mean).square() + (std - (layer.running_var + 1e-6).sqrt()).square()
            loss = loss + gap.mean()
        yield seen.detach().clone(), float(loss.detach())
        latent_adam.zero_grad()
        generator_adam.zero_grad()
        loss.backward()
        latent_adam.step()
        generator_adam.step()
        plateau.step(float(loss.detach()))
        decay.step()


@pytest.mark.parametrize(
    "own",
    [
        {"image_loss_weight": 0.0},
        {"image_loss_weight": 2.5},
        {"brightness_std": 0.6, "contrast_std": 0.4},
        {"tanh": False},
    ],
)
def test_images_are_those_of_the_last_forward_pass_of_algorithm_1(small: Teacher, own: dict[str, float]):
    options = {"num_images": 6, "batch_size": 6, "swing": False, **own}
    options |= {"generator_lr_decay_every": 1, "generator_lr_decay": 0.5}
    network = StridedNet(1)
    steps = plain_images(small, network, SynthesizeConfig(**options))
    for num_steps in (1, 2, 3, 4):
        wanted, loss = next(steps)
        result = run(small, num_steps=num_steps, **options)
        assert result.log[-1].step == num_steps
        assert result.log[-1].loss == pytest.approx(loss, rel=1e-4)
        # rounding grows with the steps; a step more or less changes the images by ten times as much
        torch.testing.assert_close(result.images, wanted, rtol=0, atol=2e-2)


class RecordingAdam(torch.optim.Adam):
    """Keeps the rate of each step."""

    rates: dict[str, list[float]]

    def step(self, *args: Any, **kwargs: Any) -> Any:
        group = self.param_groups[0]
        self.rates["latents" if len(group["params"]) == 1 else "generator"].append(float(group["lr"]))
        return super().step(*args, **kwargs)


def recorded(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[dict[str, list[float]], Synthesis]:
    rates: dict[str, list[float]] = {"latents": [], "generator": []}
    monkeypatch.setattr(RecordingAdam, "rates", rates, raising=False)
    monkeypatch.setattr(torch.optim, "Adam", RecordingAdam)
    return rates, run(teacher, **options)


def test_generator_rate_decays(small: Teacher, monkeypatch: pytest.MonkeyPatch):
    options = {"generator_lr": 0.02, "generator_lr_decay": 0.5, "generator_lr_decay_every": 3}
    rates, _ = recorded(small, monkeypatch, num_steps=9, **options)
    # eight updates: the ninth forward pass gives the images
    assert rates["generator"] == pytest.approx([0.02] * 3 + [0.01] * 3 + [0.005] * 2)


def test_latent_rate_falls_on_a_plateau_and_the_log_says_so(small: Teacher, monkeypatch: pytest.MonkeyPatch):
    # a generator that walks at random hardly improves, so that the plateau comes soon
    options = {"latent_lr_patience": 1, "latent_lr_factor": 0.5, "latent_min_lr": 0.02, "generator_lr": 5.0}
    rates, result = recorded(small, monkeypatch, num_steps=25, log_every=1, **options)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.1), factor=0.5, patience=1, min_lr=0.02
    )
    wanted = []
    for row in result.log:
        wanted.append(plateau.optimizer.param_groups[0]["lr"])
        plateau.step(row.loss)
    assert wanted[-1] < 0.1  # there was a plateau
    assert rates["latents"] == pytest.approx(wanted[:-1])
    assert [row.latent_lr for row in result.log] == pytest.approx(wanted)


def test_log_has_the_first_every_tenth_and_the_last_step_of_each_batch(small: Teacher):
    log = run(small, num_images=8, num_steps=23).log
    assert [(row.batch, row.step) for row in log] == [(b, s) for b in (1, 2) for s in (1, 10, 20, 23)]


def test_progress_counts_all_batches(small: Teacher):
    events: list[Event] = []
    config = SynthesizeConfig(num_images=8, num_steps=12, batch_size=4)
    stages.synthesize(small, config, report=events.append)
    assert events[0] == StageStarted("synthesize", 24) and events[-1] == StageFinished("synthesize")
    assert [event.done for event in events if isinstance(event, Advanced)] == [1, 10, 12, 13, 22, 24]


# the plateau schedule

steps_of_losses = st.lists(st.integers(1, 12).map(lambda i: i / 4), min_size=1, max_size=80)
"""Losses that are equal or clearly apart, so that no comparison hangs on float32."""


def compare_with_pytorch(losses: list[float], lr: float, factor: float, patience: int, min_lr: float) -> list[float]:
    schedule = PlateauSchedule(lr, factor, patience, min_lr, CPU)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=lr), factor=factor, patience=patience, min_lr=min_lr
    )
    found = []
    for loss in losses:
        schedule.step(torch.tensor(loss))
        plateau.step(loss)
        found.append(float(schedule.lr))
        assert found[-1] == pytest.approx(plateau.optimizer.param_groups[0]["lr"], rel=1e-5)
    return found


@settings(max_examples=150, deadline=None)
@given(
    losses=steps_of_losses,
    lr=st.sampled_from([0.1, 1e-3, 5e-5]),
    factor=st.sampled_from([0.1, 0.5, 0.9]),
    patience=st.integers(1, 6),
    min_lr=st.sampled_from([1e-4, 0.01, 0.09]),
)
def test_plateau_is_that_of_pytorch(losses: list[float], lr: float, factor: float, patience: int, min_lr: float):
    compare_with_pytorch(losses, lr, factor, patience, min_lr)


@settings(max_examples=50, deadline=None)
@given(losses=st.lists(st.sampled_from([1.0, 0.5, math.nan, math.inf]), min_size=1, max_size=40))
def test_plateau_survives_losses_that_are_not_finite(losses: list[float]):
    compare_with_pytorch(losses, 0.1, 0.5, 2, 1e-4)


def test_plateau_reaches_the_smallest_rate_and_stays():
    assert compare_with_pytorch([1.0] * 30, 0.1, 0.1, 1, 1e-4)[-1] == pytest.approx(1e-4)


def test_plateau_threshold_is_relative():
    tiny_gain = [1.0] + [1.0 - 0.5e-4] * 3
    clear_gain = [(1 - 2e-4) ** i for i in range(4)]
    assert compare_with_pytorch(tiny_gain, 0.1, 0.1, 2, 1e-4)[-1] == pytest.approx(0.01)
    assert compare_with_pytorch(clear_gain, 0.1, 0.1, 2, 1e-4)[-1] == pytest.approx(0.1)


def test_plateau_rate_changes_in_place():
    """The optimizer holds the tensor itself."""
    schedule = PlateauSchedule(0.1, 0.1, 1, 1e-4, CPU)
    held = schedule.lr
    for _ in range(3):
        schedule.step(torch.tensor(1.0))
    assert held is schedule.lr and float(held) == pytest.approx(0.01)
