"""The optional terms of a batch: each adds its weight times its function of the images, here in NumPy."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genie_cli.config import InputSpec, QuantizeConfig, SynthesizeConfig
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.runtime.determinism import derive_seed, make_generator
from genie_cli.synthesis import distill, image_source, terms
from genie_cli.synthesis.class_terms import class_targets, draw_confidences
from genie_cli.synthesis.discrepancy import Student
from genie_cli.synthesis.image_priors import draw_crops, local_crop
from genie_cli.synthesis.terms import BatchTerms, needs_logits
from tests.support import CPU, stages
from tests.support.students import student_of

SIZE, CLASSES, MEAN, STD = 9, 3, 0.449, 0.226
FEW = {"num_images": 9, "batch_size": 9, "num_steps": 1, "generator": False, "swing": False, "seed": 5}
"""One step: the images are the noise that pixels start from, whatever the terms are."""


class Net(nn.Module):
    """Two strided convolutions and a classifier behind their mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv2d(2, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, CLASSES)
        self.fc.weight.data.mul_(5)  # so that classes are told apart
        for norm in (self.bn1, self.bn2):
            norm.running_mean.normal_(std=0.3)
            norm.running_var.uniform_(0.1, 0.5)

    def features(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu().mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return make_teacher("net", Net(), InputSpec(num_channels=2, size=SIZE, mean=(MEAN, MEAN), std=(STD, STD)))


@pytest.fixture(scope="module")
def student_network(teacher: Teacher) -> Any:
    images = torch.randn(8, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    config = QuantizeConfig(reconstruct=False, weight_bits=2, activation_bits=3, protocol="ait")
    return student_of(stages.quantize(teacher, images, config))


@pytest.fixture
def student(student_network: Any) -> Student:
    return Student(copy.deepcopy(student_network), CPU)


# oracles


@dataclass
class Seen:
    """What a term is a function of."""

    images: np.ndarray
    logits: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    confidences: np.ndarray
    student_logits: np.ndarray


def softmax(logits: np.ndarray) -> np.ndarray:
    values = np.exp(logits - logits.max(1, keepdims=True))
    return values / values.sum(1, keepdims=True)


def cross_entropy(seen: Seen) -> float:
    return float(-np.log(softmax(seen.logits)[np.arange(9), seen.labels]).mean())


def soft_inception(seen: Seen) -> float:
    return float(((softmax(seen.logits)[np.arange(9), seen.labels] - seen.confidences) ** 2).mean())


def margin(seen: Seen) -> float:
    gaps = []
    for own, label in zip(seen.features, seen.labels, strict=True):
        centre = seen.features[seen.labels == label].mean(0)
        distance = 1 - own @ centre / (np.linalg.norm(own) * np.linalg.norm(centre))
        gaps.append(max(0.0, 0.02 - distance) + max(0.0, distance - 0.03))
    return float(np.mean(gaps))


def smoothness(seen: Seen) -> float:
    """On pixels in 0..1."""
    line = np.exp(-0.5 * np.array([-1.0, 0, 1]) ** 2)
    kernel = np.outer(line, line) / line.sum() ** 2
    pixels = seen.images * STD
    total = []
    for y in range(1, SIZE - 1):
        for x in range(1, SIZE - 1):
            around = (pixels[:, :, y - 1 : y + 2, x - 1 : x + 2] * kernel).sum((2, 3))
            total.append((pixels[:, :, y, x] - around) ** 2)
    return float(np.mean(total))


def discrepancy(seen: Seen) -> float:
    return float(-np.abs(seen.logits - seen.student_logits).mean())


TERMS: dict[str, Callable[[Seen], float]] = {
    "class_weight": cross_entropy,
    "soft_class_weight": soft_inception,
    "margin_weight": margin,
    "smoothness_weight": smoothness,
    "discrepancy_weight": discrepancy,
}
ALWAYS = {"margin_low": 0.02, "margin_high": 0.03, "soft_class_lowest": 0.6}


def run(teacher: Teacher, student: Student | None = None, **options: Any) -> tuple[float, Tensor]:
    needed = {"student": "somewhere"} if options.get("discrepancy_weight") else {}
    config = SynthesizeConfig(**{**FEW, **ALWAYS, **options, **needed})
    result = stages.synthesize(teacher, config, student=student)
    return result.log[-1].loss, result.images


@torch.no_grad()
def seen_of(images: Tensor, student_network: Any, crops: Tensor | None = None) -> Seen:
    network = Net().eval()
    shown = images if crops is None else local_crop(images, crops)

    def draws(purpose: str) -> torch.Generator:
        return make_generator(CPU, 5, purpose, 0)

    tensors = (
        images, network(shown), network.features(shown), class_targets(9, CLASSES, draws("classes")),
        draw_confidences(9, 0.6, draws("confidences")), student_network(shown),
    )  # fmt: skip
    return Seen(*(t.double().numpy() if t.is_floating_point() else t.numpy() for t in tensors))


@pytest.mark.parametrize("weight", [0.5, 30.0])
@pytest.mark.parametrize("name", TERMS)
def test_a_term_adds_its_weight_times_its_function(
    name: str, weight: float, teacher: Teacher, student: Student, student_network: Any
):
    without, images = run(teacher)
    own = student if name == "discrepancy_weight" else None
    with_term, same = run(teacher, own, **{name: weight})
    assert torch.equal(images, same)
    value = TERMS[name](seen_of(images, student_network))
    assert abs(value) > 1e-3
    assert with_term - without == pytest.approx(weight * value, rel=1e-3, abs=1e-4)


def test_terms_add_up(teacher: Teacher, student: Student, student_network: Any):
    weights = {name: float(i + 1) for i, name in enumerate(TERMS)}
    without, images = run(teacher)
    seen = seen_of(images, student_network)
    wanted = without + sum(weight * TERMS[name](seen) for name, weight in weights.items())
    assert run(teacher, student, **weights)[0] == pytest.approx(wanted, rel=1e-4)


def test_weights_of_the_statistics(teacher: Teacher):
    """Both parts of GENIE's own loss are weighed, and are all there is without terms."""
    statistics, images = run(teacher, image_loss_weight=0.0)
    images_alone = run(teacher, statistics_weight=0.0)[0]
    std, mean = torch.std_mean(images, (2, 3))
    assert images_alone == pytest.approx(float(mean.square().sum() + (std - 1).square().sum()) / 9, rel=1e-4)
    found = run(teacher, statistics_weight=0.1, image_loss_weight=3.0)[0]
    assert found == pytest.approx(0.1 * statistics + 3 * images_alone, rel=1e-4)


def test_the_teacher_sees_crops_and_the_image_prior_does_not(teacher: Teacher, student: Student, student_network: Any):
    crops = draw_crops(1, 9, 0.3, 1.0, make_generator(CPU, 5, "crops", 0))[0]
    options = {"crop_prob": 1.0, "crop_lowest": 0.3, "statistics_weight": 0.0}
    without, images = run(teacher, **options)
    cropped, whole = (seen_of(images, student_network, own) for own in (crops, None))
    assert not np.allclose(cropped.logits, whole.logits, atol=0.05)
    for name, function in TERMS.items():
        own = student if name == "discrepancy_weight" else None
        found = run(teacher, own, **options, **{name: 10.0})[0] - without
        wanted = function(whole if name == "smoothness_weight" else cropped)
        assert found == pytest.approx(10 * wanted, rel=1e-3, abs=1e-3), name
    assert run(teacher, **{**options, "statistics_weight": 1.0})[0] != pytest.approx(run(teacher)[0], rel=1e-2)


def test_superposed_classes_are_the_targets_of_the_cross_entropy(teacher: Teacher, monkeypatch: pytest.MonkeyPatch):
    targets: list[Tensor] = []
    images_of = image_source.GeneratedImages.images

    def record(source: Any, step_index: Tensor) -> tuple[Tensor, Tensor | None]:
        images, own = images_of(source, step_index)
        targets.append(own)  # type: ignore[arg-type]
        return images, own

    monkeypatch.setattr(image_source.GeneratedImages, "images", record)
    options = {"generator": True, "conditioning": "superposed", "mix_prob": 1.0}
    without, images = run(teacher, **options)
    found = run(teacher, **options, class_weight=2.0)[0]
    with torch.no_grad():
        chances = softmax(Net().eval()(images).double().numpy())
    soft = targets[-1].detach().double().numpy()
    assert (soft.max(1) < 0.999).sum() > 3  # a class may be drawn twice
    assert found - without == pytest.approx(-2 * (soft * np.log(chances)).sum(1).mean(), rel=1e-3)


# what a term costs and draws


WEIGHTS = ["class_weight", "soft_class_weight", "margin_weight", "discrepancy_weight"]


@given(values=st.lists(st.sampled_from([0.0, 0.0, 1e-3, 2.0]), min_size=5, max_size=5))
def test_logits_are_needed_by_the_terms_that_look_at_them(values: list[float]):
    named = dict(zip([*WEIGHTS, "smoothness_weight"], values, strict=True))
    more = {"student": "somewhere"} if named["discrepancy_weight"] else {}
    config = SynthesizeConfig(**named, **more, crop_prob=0.5)
    assert needs_logits(config) == any(named[name] > 0 for name in WEIGHTS)


def batch_terms(index: int = 0, size: int = 9, against: Student | None = None, **options: Any) -> BatchTerms:
    config = SynthesizeConfig(**{**FEW, **ALWAYS, **options})
    spec = InputSpec(num_channels=2, size=SIZE, mean=(MEAN, MEAN), std=(STD, STD))
    return BatchTerms(spec, CLASSES, index, size, config, CPU, against)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), index=st.integers(0, 50), size=st.integers(2, 40))
def test_labels_are_even_and_follow_seed_and_index(seed: int, index: int, size: int):
    labels = batch_terms(index, size, seed=seed).labels
    counts = torch.bincount(labels, minlength=CLASSES)
    assert int(counts.max() - counts.min()) <= 1 and labels.shape == (size,)
    assert torch.equal(labels, batch_terms(index, size, seed=seed).labels)


def test_without_terms_there_is_nothing_to_add():
    images = torch.randn(9, 2, SIZE, SIZE)
    own = batch_terms()
    assert own.seen(images, torch.zeros(1, dtype=torch.int64)) is images
    assert own.loss(images, images, None, None, None) is None


def test_each_step_has_crops_of_its_own():
    images = torch.randn(9, 2, SIZE, SIZE)
    own = batch_terms(num_steps=3, crop_prob=1.0, crop_lowest=0.3)
    drawn = draw_crops(3, 9, 0.3, 1.0, make_generator(CPU, 5, "crops", 0))
    for step in range(3):
        assert torch.equal(own.seen(images, torch.tensor([step])), local_crop(images, drawn[step]))
    assert not torch.equal(drawn[0], drawn[1])


def test_every_purpose_draws_from_a_place_of_its_own(teacher: Teacher, monkeypatch: pytest.MonkeyPatch):
    places: list[tuple[int | str, ...]] = []

    def seed(*place: int | str) -> int:
        places.append(place)
        return derive_seed(*place)

    for module in (distill, image_source, terms):
        monkeypatch.setattr(module, "make_generator", lambda device, *place: make_generator(device, seed(*place)))
    monkeypatch.setattr(image_source, "derive_seed", seed)
    options = {"class_weight": 1.0, "soft_class_weight": 1.0, "crop_prob": 0.5, "conditioning": "superposed"}
    run(teacher, generator=True, num_images=18, **options)
    assert len(places) == len(set(places)) == 2 * 8
    assert {place[0] for place in places} == {5} and {place[-1] for place in places} == {0, 1}


# the student of ZAQ


def test_the_student_passes_its_gradient_on(teacher: Teacher, student: Student):
    """Along its gradient the disagreement grows, although rounding itself has no gradient."""
    config = {"discrepancy_weight": 1.0, "student": "somewhere"}
    own = batch_terms(against=student, **config)
    images = torch.randn(9, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(3), requires_grad=True)
    logits = teacher.graph(images)
    features = torch.zeros(9, 8)

    def loss_at(at: Tensor, teacher_logits: Tensor) -> Tensor:
        found = own.loss(at, at, None, teacher_logits, features)
        assert found is not None
        return found

    # the teacher's logits held still, the gradient is the student's alone
    (gradient,) = torch.autograd.grad(loss_at(images, logits.detach()), images)
    assert torch.isfinite(gradient).all() and (gradient.abs().amax((1, 2, 3)) > 0).all()
    with torch.no_grad():
        unit = gradient / gradient.norm()
        before = loss_at(images, logits)
        losses = [float(loss_at(images - length * unit, logits)) for length in (1.0, 2.0, 4.0)]
    assert min(losses) < float(before) and losses[-1] < float(before)


def test_images_come_to_tell_the_student_from_the_teacher(teacher: Teacher, student: Student, student_network: Any):
    few = {"image_loss_weight": 0.1, "statistics_weight": 0.1}

    def gap(images: Tensor) -> float:
        with torch.no_grad():
            return float((teacher.graph(images) - student_network(images)).abs().mean())

    plain = run(teacher, num_steps=40, **few)[1]
    told_apart = run(teacher, student, num_steps=40, discrepancy_weight=1.0, **few)[1]
    assert gap(told_apart) > 1.5 * gap(plain)


@pytest.mark.parametrize("name", [name for name in TERMS if name != "discrepancy_weight"])
def test_a_term_falls_when_it_is_learned(name: str, teacher: Teacher, student_network: Any):
    few = {"num_steps": 30, "statistics_weight": 0.01, "image_loss_weight": 0.01}
    plain, learned = run(teacher, **few)[1], run(teacher, **few, **{name: 10.0})[1]
    before, after = (TERMS[name](seen_of(images, student_network)) for images in (plain, learned))
    assert math.isfinite(after) and after < 0.5 * before
