"""Pixels that learn (ZeroQ), latents drawn in every step (GBA), and several teachers (MixMix)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from genie_cli.app import app
from genie_cli.artifacts.images import load_images
from genie_cli.config import InputSpec, ModelConfig, SynthesizeConfig, build
from genie_cli.errors import InputError
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.models.zoo import load_teacher
from genie_cli.runtime.determinism import make_generator
from genie_cli.synthesis import image_source
from genie_cli.synthesis.conditioning import draw_superpositions
from genie_cli.synthesis.generator import Generator
from genie_cli.synthesis.image_source import GeneratedImages, LearnedPixels, make_source
from genie_cli.synthesis.presets import preset_options
from genie_cli.synthesis.synthesize import Synthesis
from genie_cli.synthesis.teacher_network import check_same_input
from tests.support import CPU, stages
from tests.support.networks import StridedNet

FEW = {"num_images": 6, "batch_size": 6, "num_steps": 4}
PIXELS = {"generator": False, "swing": False}
SAMPLED = {"latents": "sampled", "swing": False}


def teacher_of(network: StridedNet, mean: float = 0.449, std: float = 0.226, size: int = 8) -> Teacher:
    return make_teacher("small", network, InputSpec(num_channels=1, size=size, mean=(mean,), std=(std,)))


@pytest.fixture(scope="module")
def small() -> Teacher:
    return teacher_of(StridedNet(1))


def run(teacher: Teacher, others: tuple[Teacher, ...] = (), log_every: int | None = None, **options: Any) -> Synthesis:
    return stages.synthesize(teacher, SynthesizeConfig(**{**FEW, **options}), others, log_every=log_every)


def statistics_of(network: StridedNet, images: Tensor) -> Tensor:
    """Eq. 5 by forward hooks."""
    losses = []

    def measure(layer: nn.BatchNorm2d, args: tuple[Tensor]) -> None:
        std, mean = torch.std_mean(args[0], (0, 2, 3))
        gap = (mean - layer.running_mean).square() + (std - (layer.running_var + 1e-6).sqrt()).square()
        losses.append(gap.mean())

    handles = [norm.register_forward_pre_hook(measure) for norm in (network.bn1, network.bn2)]
    network.eval()(images)
    for handle in handles:
        handle.remove()
    return torch.stack(losses).sum()


def image_loss_of(images: Tensor) -> Tensor:
    std, mean = torch.std_mean(images, (2, 3))
    return (mean.square().sum() + (std - 1).square().sum()) / len(images)


# pixels


def plain_pixels(network: StridedNet, config: SynthesizeConfig) -> Iterator[tuple[Tensor, float, float]]:
    """Images, loss and rate of each step, by PyTorch's optimizer and schedule."""
    draws = make_generator(CPU, config.seed, "pixels", 0)
    pixels = nn.Parameter(torch.randn(config.num_images, 1, 8, 8, generator=draws))
    adam = torch.optim.Adam([pixels], lr=config.pixel_lr)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        adam, factor=config.latent_lr_factor, patience=config.latent_lr_patience, min_lr=config.latent_min_lr
    )
    while True:
        loss = statistics_of(network, pixels) + config.image_loss_weight * image_loss_of(pixels)
        yield pixels.detach().clone(), float(loss.detach()), adam.param_groups[0]["lr"]
        adam.zero_grad()
        loss.backward()
        adam.step()
        plateau.step(float(loss.detach()))


@pytest.mark.parametrize("options", [{}, {"pixel_lr": 3.0, "latent_lr_patience": 1, "latent_lr_factor": 0.5}], ids=str)
def test_pixels_are_those_of_plain_adam(small: Teacher, options: dict[str, Any]):
    num_steps = 12
    result = run(small, num_steps=num_steps, log_every=1, **PIXELS, **options)
    steps = plain_pixels(StridedNet(1).requires_grad_(False), SynthesizeConfig(**FEW, **PIXELS, **options))
    wanted = [next(steps) for _ in range(num_steps)]
    torch.testing.assert_close(result.images, wanted[-1][0], rtol=0, atol=1e-3)
    assert [row.loss for row in result.log] == pytest.approx([loss for _, loss, _ in wanted], rel=1e-3)
    assert [row.latent_lr for row in result.log] == pytest.approx([rate for *_, rate in wanted])
    assert options == {} or wanted[-1][2] < 3  # there was a plateau


def test_one_step_leaves_the_noise_that_pixels_start_from(small: Teacher):
    images = run(small, num_steps=1, seed=7, **PIXELS).images
    draws = make_generator(CPU, 7, "pixels", 0)
    assert torch.equal(images, torch.randn(6, 1, 8, 8, generator=draws))


def test_zeroq_learns(digits_teacher: Teacher, monkeypatch: pytest.MonkeyPatch):
    def none(*args: object) -> Generator:
        raise AssertionError("ZeroQ has no generator")

    monkeypatch.setattr(image_source, "_new_generator", none)
    few = {"num_images": 16, "batch_size": 16, "num_steps": 60}
    config = build(SynthesizeConfig, preset_options("zeroq"), few)
    log = stages.synthesize(digits_teacher, config).log
    assert log[-1].loss < log[0].loss / 4
    assert log[0].latent_lr == pytest.approx(config.pixel_lr)


# latents


def latents_seen(teacher: Teacher, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[list[Tensor], Synthesis]:
    seen: list[Tensor] = []
    forward = Generator.forward

    def record(generator: Generator, latents: Tensor) -> Tensor:
        seen.append(latents.detach().clone())
        return forward(generator, latents)

    with monkeypatch.context() as patched:
        patched.setattr(Generator, "forward", record)
        return seen, run(teacher, **options)


def test_sampled_latents_are_new_in_every_step(small: Teacher, monkeypatch: pytest.MonkeyPatch):
    seen, _ = latents_seen(small, monkeypatch, num_steps=5, **SAMPLED)
    draws = make_generator(CPU, 0, "latents", 0)
    stream = [torch.randn(6, 256, generator=draws) for _ in range(6)]
    assert len(seen) == 5
    for i, own in enumerate(seen):
        assert any(torch.equal(own, drawn) for drawn in stream)
        assert not any(torch.equal(own, other) for other in seen[:i])


def test_learned_latents_start_at_the_draw_and_move_by_their_rate(small: Teacher, monkeypatch: pytest.MonkeyPatch):
    seen, _ = latents_seen(small, monkeypatch, num_steps=3, swing=False)
    assert torch.equal(seen[0], torch.randn(6, 256, generator=make_generator(CPU, 0, "latents", 0)))
    for before, after in itertools.pairwise(seen):
        moved = (after - before).abs()
        assert 0 < moved.max() < 0.13  # Adam's step is about its rate


def test_sampled_latents_follow_the_seed_and_nothing_else(small: Teacher, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(1)
    first, result = latents_seen(small, monkeypatch, seed=3, **SAMPLED)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, same = latents_seen(small, monkeypatch, seed=3, **SAMPLED)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(result.images, same.images) and result.log == same.log
    other, _ = latents_seen(small, monkeypatch, seed=4, **SAMPLED)
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_each_batch_has_latents_of_its_own(small: Teacher, monkeypatch: pytest.MonkeyPatch):
    seen, _ = latents_seen(small, monkeypatch, num_images=12, num_steps=2, **SAMPLED)
    assert len(seen) == 4 and len({own.numpy().tobytes() for own in seen}) == 4


def test_log_has_no_rate_where_nothing_learns_image_by_image(small: Teacher):
    assert [row.latent_lr for row in run(small, num_steps=11, **SAMPLED).log] == [0.0] * 3
    assert [row.latent_lr for row in run(small, num_steps=11).log] == pytest.approx([0.1] * 3)


def test_a_generator_learns_from_sampled_latents(digits_teacher: Teacher):
    config = build(SynthesizeConfig, preset_options("gba"), {"num_images": 16, "batch_size": 16, "num_steps": 60})
    log = stages.synthesize(digits_teacher, config).log
    assert log[-1].loss < log[0].loss / 2


def test_kind_of_source(small: Teacher):
    labels = torch.zeros(6, dtype=torch.int64)
    for options, kind in ((PIXELS, LearnedPixels), (SAMPLED, GeneratedImages), ({}, GeneratedImages)):
        config = SynthesizeConfig(**FEW, **options)
        source = make_source(small.input, 3, 0, labels, config, CPU)
        assert isinstance(source, kind)
        assert (source.codes is None) == (options is SAMPLED)
        assert bool(list(source.weights())) == (options is not PIXELS)
        images, targets = source.images(torch.zeros(1, dtype=torch.int64))
        assert images.shape == (6, 1, 8, 8) and targets is None


def conditioned(small: Teacher, conditioning: str, labels: list[int]) -> GeneratedImages:
    config = SynthesizeConfig(**FEW, **SAMPLED, conditioning=conditioning, mix_prob=0.6)
    source = make_source(small.input, 3, 0, torch.tensor(labels), config, CPU)
    assert isinstance(source, GeneratedImages)
    return source


def test_a_label_changes_its_own_latents_alone(small: Teacher, monkeypatch: pytest.MonkeyPatch):
    seen: list[Tensor] = []
    monkeypatch.setattr(Generator, "forward", lambda generator, latents: seen.append(latents) or latents)
    for labels in ([0, 1, 2, 0, 1, 2], [1, 1, 2, 0, 1, 2]):
        conditioned(small, "label", labels).images(torch.zeros(1, dtype=torch.int64))
    differs = (seen[0] != seen[1]).any(1)
    assert differs.tolist() == [True] + [False] * 5


def test_superpositions_are_drawn_for_every_step(small: Teacher):
    labels = [0, 1, 2, 0, 1, 2]
    source = conditioned(small, "superposed", labels)
    draws = make_generator(CPU, 0, "superpositions", 0)
    classes, shares = draw_superpositions(torch.tensor(labels).expand(4, -1), 3, 2, 0.6, draws)
    found = []
    for step in range(4):
        targets = source.images(torch.tensor([step]))[1]
        assert targets is not None
        wanted = torch.zeros(6, 3).scatter_add_(1, classes[step], shares[step])
        torch.testing.assert_close(targets.detach(), wanted)
        assert targets.argmax(1).tolist() == labels  # its label stays the likeliest
        found.append(targets)
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("conditioning", ["label", "superposed"])
def test_embeddings_learn(small: Teacher, conditioning: str):
    source = conditioned(small, conditioning, [0, 1, 2, 0, 1, 2])
    source.images(torch.zeros(1, dtype=torch.int64))[0].square().sum().backward()
    names = dict(source._conditioning.named_parameters())  # type: ignore[union-attr]
    own = {id(parameter) for parameter in source.weights()}
    for name, parameter in names.items():
        assert id(parameter) in own, name
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


# several teachers


def test_the_loss_is_the_mean_over_teachers_each_in_its_own_normalisation():
    networks = [
        StridedNet(1).requires_grad_(False),
        StridedNet(2, num_classes=5).requires_grad_(False),
        StridedNet(3).requires_grad_(False),
    ]
    normalisations = [(0.5, 0.5), (0.1, 0.8), (0.5, 0.5)]
    teachers = [teacher_of(network, *own) for network, own in zip(networks, normalisations, strict=True)]
    result = run(teachers[0], tuple(teachers[1:]), num_steps=1, image_loss_weight=0.0, **PIXELS)
    pixels = result.images * 0.5 + 0.5
    wanted = [
        float(statistics_of(network, (pixels - mean) / std))
        for network, (mean, std) in zip(networks, normalisations, strict=True)
    ]
    assert len({round(loss, 2) for loss in wanted}) == 3
    assert result.log[-1].loss == pytest.approx(sum(wanted) / 3, rel=1e-4)


def test_images_come_to_fit_every_teacher():
    networks = [StridedNet(1).requires_grad_(False), StridedNet(2).requires_grad_(False)]
    teachers = [teacher_of(networks[0]), teacher_of(networks[1], 0.1, 0.8)]
    few = {"num_images": 16, "batch_size": 16, "image_loss_weight": 0.0, **PIXELS}

    def losses(images: Tensor) -> list[float]:
        spaces = (images, (images * 0.5 + 0.5 - 0.1) / 0.8)
        return [float(statistics_of(network, space)) for network, space in zip(networks, spaces, strict=True)]

    both = losses(run(teachers[0], (teachers[1],), num_steps=80, **few).images)
    start = losses(run(teachers[0], (teachers[1],), num_steps=1, **few).images)
    first_alone = losses(run(teachers[0], num_steps=80, **few).images)
    assert both[0] < start[0] and both[1] < start[1] and sum(both) < 0.75 * sum(start)
    assert both[1] < first_alone[1] and first_alone[0] < both[0]


def test_teachers_of_other_inputs_are_refused():
    one, other = teacher_of(StridedNet(1)), teacher_of(StridedNet(1), size=16)
    check_same_input(one, teacher_of(StridedNet(2), 0.1, 0.8))
    with pytest.raises(InputError, match=r"1 channel\(s\) of 8x8 pixels .* 1 of 16x16"):
        check_same_input(one, other)


OTHER = """
import torch

from genie_cli.models.digits import digits_resnet


def one():
    torch.manual_seed(1)
    return digits_resnet()


def two():
    torch.manual_seed(2)
    return digits_resnet()
"""
GRAY = ("--num-channels", 1, "--input-size", 16, "--mean", 0.3, "--std", 0.3)


def genie(*args: object) -> Any:
    result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="genie")
    assert result.exit_code == 0, result.stderr
    return result


def test_artifact_records_every_teacher_and_no_quantizer_warns_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits_teacher: Teacher
):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(OTHER)
    shown = genie(
        "synthesize", "--model", "digits_resnet", "--model", "nets.py:one", *GRAY, "--n", 4, "--num-steps", 2,
        "--preset", "mixmix",
    )  # fmt: skip
    gray = {"input_size": 16, "num_channels": 1, "mean": (0.3,), "std": (0.3,)}
    other = load_teacher(ModelConfig(name="nets.py:one", **gray))
    metadata = load_images(Path("images.safetensors")).metadata
    assert (metadata.teacher, metadata.teacher_sha256) == ("digits_resnet", digits_teacher.sha256)
    assert metadata.other_teachers == {other.sha256: "nets.py:one"}
    assert metadata.student_sha256 is None and metadata.config["preset"] == "mixmix"
    for one in (digits_teacher, other):
        assert f"{one.name} ({one.sha256[:12]})" in " ".join(shown.stdout.split())
    for name, warns in (("digits_resnet", False), ("nets.py:one", False), ("nets.py:two", True)):
        result = genie("quantize", "--model", name, *GRAY, "--preset", "minmax")
        assert ("made for another teacher" in result.stderr) == warns, name
