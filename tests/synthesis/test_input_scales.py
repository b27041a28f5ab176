"""Images are the same pixels whatever mean and std the network's input has, and keep their bits with ImageNet's."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genie_cli.artifacts.images import encode_images
from genie_cli.config import InputSpec, SynthesizeConfig, build
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import silent
from genie_cli.synthesis.discrepancy import Student
from genie_cli.synthesis.image_source import make_source
from genie_cli.synthesis.presets import PRESETS, preset_options
from genie_cli.synthesis.synthesize import Synthesis, synthesize_images

CPU = torch.device("cpu")
IMAGENET = {
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    1: ((0.449,), (0.226,)),
}
INPUTS = {"0..1": (0.0, 1.0), "0..255": (0.0, 1 / 255), "-1..1": (0.5, 0.5), "tiny": (0.41, 70.0)}
"""Mean and std of inputs in other ranges than ImageNet's."""
FEW = {"num_images": 6, "batch_size": 6, "num_steps": 5, "seed": 3}
ALONE = [name for name, preset in PRESETS.items() if not preset.needs]


def input_spec(mean: tuple[float, ...], std: tuple[float, ...]) -> InputSpec:
    return InputSpec(num_channels=len(mean), size=12, mean=mean, std=std)


class Small(nn.Module):
    """Two strided convolutions with running statistics of their own, for an input with ImageNet's normalisation."""

    def __init__(self, num_channels: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.features = nn.Sequential(
            nn.Conv2d(num_channels, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(8, 3)
        for norm in (self.features[1], self.features[4]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Inside(nn.Module):
    """The same network for another input, whose way to ImageNet's normalisation lies inside."""

    def __init__(self, network: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        numbers = (spec.mean, spec.std, *IMAGENET[spec.num_channels])
        self.network = network
        self.numbers = nn.Parameter(torch.tensor(numbers).view(4, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean, std, own_mean, own_std = self.numbers
        return self.network((x * std + mean - own_mean) / own_std)


@cache
def plain(num_channels: int = 3, seed: int = 0) -> Teacher:
    return make_teacher("plain", Small(num_channels, seed), input_spec(*IMAGENET[num_channels]))


@cache
def inside(name: str, num_channels: int = 3, seed: int = 0) -> Teacher:
    mean, std = INPUTS[name]
    spec = input_spec((mean,) * num_channels, (std,) * num_channels)
    return make_teacher("inside", Inside(Small(num_channels, seed), spec), spec)


def run(
    teacher: Teacher, *others: Teacher, preset: str = "genie", against: Student | None = None, **options: Any
) -> Synthesis:
    if against is not None:
        options["student"] = Path("not read")
    config = build(SynthesizeConfig, preset_options(preset), {**FEW, **options})
    return synthesize_images(teacher, config, RunContext.alone(CPU, torch.float32, silent), others, against)


def pixels(images: Tensor, spec: InputSpec) -> Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    return images * std + mean


def assert_same_pixels(teacher: Teacher, found: Synthesis, wanted: Synthesis) -> None:
    """Losses, rates and pixels are those of the network with ImageNet's normalisation.

    A pixel whose first gradient is about 0 may step the other way, so the mean distance counts. It is 0.05 and more
    where start, rate or statistics are those of another space.
    """
    assert [row.loss for row in found.log] == pytest.approx([row.loss for row in wanted.log], rel=1e-3)
    assert [row.latent_lr for row in found.log] == [row.latent_lr for row in wanted.log]
    own, others = pixels(found.images, teacher.input), pixels(wanted.images, plain(teacher.input.num_channels).input)
    assert float((own - others).abs().mean()) < 1e-3


@pytest.mark.parametrize("preset", ["genie", "zeroq"])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_images_of_any_input_are_the_same_pixels(num_channels: int, preset: str) -> None:
    wanted = run(plain(num_channels), preset=preset)
    for name in INPUTS:
        teacher = inside(name, num_channels)
        assert_same_pixels(teacher, run(teacher, preset=preset), wanted)


@pytest.mark.parametrize("preset", ALONE)
def test_images_of_every_preset_are_the_same_pixels(preset: str) -> None:
    teacher = inside("0..1")
    options = {"crop_prob": 0.5} if preset == "intraq" else {}
    assert_same_pixels(teacher, run(teacher, preset=preset, **options), run(plain(), preset=preset, **options))


def test_the_smoothness_of_pixels_counts_in_every_space() -> None:
    options = {"preset": "kw", "smoothness_weight": 1000.0, "class_weight": 0.0}
    teacher, smooth = inside("0..255"), run(plain(), **options)
    assert_same_pixels(teacher, run(teacher, **options), smooth)
    assert smooth.log[0].loss > run(plain(), preset="zeroq").log[0].loss + 10  # it is a term that is seen


def test_pixels_move_by_the_same_rate_down_to_the_lowest() -> None:
    """The image loss alone, whose gradient no rounding turns: the rate falls, ends at its minimum and moves pixels."""
    options = {"preset": "zeroq", "statistics_weight": 1e-6, "pixel_lr": 1.0, "num_steps": 41}
    options |= {"latent_lr_patience": 1, "latent_lr_factor": 0.1, "latent_min_lr": 0.01}
    teacher, wanted = inside("0..255"), run(plain(), **options)
    assert wanted.log[-1].latent_lr == pytest.approx(0.01)
    assert_same_pixels(teacher, run(teacher, **options), wanted)


def test_teachers_of_several_normalisations_see_the_same_pixels() -> None:
    wanted = run(plain(), plain(seed=1), preset="mixmix")
    assert_same_pixels(plain(), run(plain(), inside("0..255", seed=1), preset="mixmix"), wanted)
    first = inside("0..1")
    assert_same_pixels(first, run(first, plain(seed=1), preset="mixmix"), wanted)
    assert_same_pixels(first, run(first, inside("-1..1", seed=1), preset="mixmix"), wanted)


def test_the_student_sees_its_own_space() -> None:
    teacher = inside("0..255")
    own, others = (Student(one.graph, CPU) for one in (inside("0..255", seed=1), plain(seed=1)))
    found, wanted = run(teacher, preset="zaq", against=own), run(plain(), preset="zaq", against=others)
    assert_same_pixels(teacher, found, wanted)


def test_stored_pixels_are_the_same() -> None:
    teacher, options = inside("0..1"), {"preset": "zeroq", "num_steps": 1}
    images, wanted = (encode_images(run(t, **options).images, "uint8", t.input) for t in (teacher, plain()))
    assert int((images.int() - wanted.int()).abs().max()) <= 1
    mean = wanted.float().mean((0, 2, 3)) / 255
    torch.testing.assert_close(mean, torch.tensor(IMAGENET[3][0]), rtol=0, atol=0.05)


@pytest.mark.parametrize("preset", ["genie", "zeroq"])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_with_imagenets_normalisation_no_bit_is_touched(num_channels: int, preset: str) -> None:
    teacher = plain(num_channels)
    config = build(SynthesizeConfig, preset_options(preset), FEW)
    source = make_source(teacher.input, 3, 0, torch.zeros(6, dtype=torch.int64), config, CPU)
    wanted, _ = source.images(torch.zeros(1, dtype=torch.int64))
    assert torch.equal(run(teacher, preset=preset, num_steps=1).images, wanted.detach())
