"""The class terms against NumPy, finite differences and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from genie_cli.synthesis.class_terms import (
    class_targets,
    classification_loss,
    draw_confidences,
    marginal_distance_loss,
    soft_inception_loss,
)


def draw(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numpy_softmax(logits: Tensor) -> np.ndarray:
    rows = np.exp(logits.double().numpy() - logits.double().numpy().max(1, keepdims=True))
    return rows / rows.sum(1, keepdims=True)


def numpy_margin(features: Tensor, labels: list[int], low: float, high: float) -> float:
    """Image by image, with a centre made anew for each."""
    rows, losses = features.double().numpy(), []
    for row, label in zip(rows, labels, strict=True):
        members = [other for other, its in zip(rows, labels, strict=True) if its == label]
        if len(members) > 1:
            centre = np.mean(members, axis=0)
            distance = 1 - row @ centre / (np.linalg.norm(row) * np.linalg.norm(centre))
            losses.append(max(low - distance, 0) + max(distance - high, 0))
    return float(np.mean(losses)) if losses else 0.0


# labels and confidences


@given(num_images=st.integers(1, 60), num_classes=st.integers(1, 40), seed=st.integers(0, 99))
@settings(deadline=None)
def test_labels_are_spread_evenly(num_images: int, num_classes: int, seed: int):
    labels = class_targets(num_images, num_classes, seeded(seed))
    assert labels.dtype == torch.int64 and labels.shape == (num_images,)
    counts = np.bincount(labels.numpy(), minlength=num_classes)
    assert len(counts) == num_classes and counts.max() - counts.min() <= 1
    assert torch.equal(labels, class_targets(num_images, num_classes, seeded(seed)))


def test_few_images_see_all_classes_alike():
    seen = torch.cat([class_targets(3, 10, seeded(seed)) for seed in range(400)])
    counts = np.bincount(seen.numpy(), minlength=10)
    assert counts.min() > 80 and counts.max() < 160  # 120 each, deviation 10
    assert not torch.equal(class_targets(20, 10, seeded(1)), class_targets(20, 10, seeded(2)))


@pytest.mark.parametrize("lowest", [0.6, 0.95, 1.0])
def test_half_of_the_confidences_are_drawn_between_lowest_and_one(lowest: float):
    confidence = draw_confidences(4000, lowest, seeded())
    assert confidence.dtype == torch.float32 and confidence.shape == (4000,)
    assert float(confidence.min()) >= lowest - 1e-6 and float(confidence.max()) == 1
    if lowest < 1:
        drawn = confidence[confidence < 1]
        assert 0.46 < len(drawn) / 4000 < 0.54
        assert float(drawn.mean()) == pytest.approx((1 + lowest) / 2, abs=0.05 * (1 - lowest))


# cross-entropy


def test_classification_loss_is_that_of_numpy():
    logits, targets = draw(6, 4), draw(6, 4, seed=1).softmax(1)
    wanted = -(targets.numpy() * np.log(numpy_softmax(logits))).sum(1).mean()
    assert classification_loss(logits, targets).item() == pytest.approx(wanted, rel=1e-12)


def test_one_hot_classification_loss_is_pytorchs():
    logits, labels = draw(9, 5).float(), torch.arange(9) % 5
    loss = classification_loss(logits, F.one_hot(labels, 5).float())
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_classification_gradient_is_the_gap_of_the_probabilities(scale: float):
    logits, targets = draw(6, 4, scale=scale).requires_grad_(), draw(6, 4, seed=1).softmax(1)
    classification_loss(logits, targets).backward()
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(1) - targets) / 6)


def test_one_class_costs_nothing():
    logits, labels = draw(3, 1).requires_grad_(), torch.zeros(3, dtype=torch.int64)
    loss = classification_loss(logits, torch.ones(3, 1)) + soft_inception_loss(logits, labels, torch.ones(3))
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros(3, 1, dtype=torch.float64))


# soft inception


def test_soft_inception_loss_is_that_of_numpy():
    logits, labels, confidence = draw(6, 4), torch.tensor([0, 3, 3, 1, 2, 0]), draw(6, seed=2).sigmoid()
    own = numpy_softmax(logits)[np.arange(6), labels.numpy()]
    wanted = ((own - confidence.numpy()) ** 2).mean()
    assert soft_inception_loss(logits, labels, confidence).item() == pytest.approx(wanted, rel=1e-12)


def test_soft_inception_loss_vanishes_at_the_confidence():
    confidence = torch.tensor([0.6, 0.95, 0.3])
    logits = torch.zeros(3, 5)
    logits[[0, 1, 2], [4, 0, 2]] = (confidence / (1 - confidence) * 4).log()
    loss = soft_inception_loss(logits, torch.tensor([4, 0, 2]), confidence)
    assert loss.item() < 1e-12


def test_gradients_of_the_losses_on_logits():
    logits, labels = draw(3, 4, scale=1.0).requires_grad_(), torch.tensor([3, 0, 0])
    targets, confidence = draw(3, 4, seed=1).softmax(1), torch.tensor([0.2, 1.0, 0.7])
    assert torch.autograd.gradcheck(lambda x: classification_loss(x, targets), logits)
    assert torch.autograd.gradcheck(lambda x: soft_inception_loss(x, labels, confidence.double()), logits)


def test_extreme_logits_are_finite():
    logits = torch.tensor([[1e30, -1e30, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    labels = torch.tensor([1, 1])
    loss = soft_inception_loss(logits, labels, torch.ones(2)) + classification_loss(logits / 1e10, torch.ones(2, 3) / 3)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


# marginal distance


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    low=st.floats(0, 0.5),
    width=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_marginal_distance_loss_is_that_of_numpy(labels: list[int], low: float, width: float, seed: int):
    features = draw(len(labels), 5, seed=seed)
    loss = marginal_distance_loss(features, torch.tensor(labels), low, low + width)
    assert loss.item() == pytest.approx(numpy_margin(features, labels, low, low + width), rel=1e-9, abs=1e-12)


def test_distances_within_the_margins_cost_nothing():
    features = draw(8, 5).requires_grad_()
    loss = marginal_distance_loss(features, torch.arange(8) % 2, 0.0, 2.0)
    loss.backward()
    assert loss.item() == 0 and not features.grad.any()


def test_two_images_of_a_class_by_hand():
    angle = 0.8  # between the two; each is half of it from the centre
    features = torch.tensor([[2.0, 0.0], [2 * math.cos(angle), 2 * math.sin(angle)]])
    distance = 1 - math.cos(angle / 2)
    labels = torch.zeros(2, dtype=torch.int64)
    assert marginal_distance_loss(features, labels, 0.3, 1).item() == pytest.approx(0.3 - distance, rel=1e-5)
    assert marginal_distance_loss(features, labels, 0, 0.05).item() == pytest.approx(distance - 0.05, rel=1e-5)


def test_gradient_leaves_the_centres_alone():
    features, labels = draw(6, 4).requires_grad_(), torch.tensor([0, 0, 0, 1, 1, 2])
    marginal_distance_loss(features, labels, 0.2, 0.4).backward()
    analytic, start = features.grad.clone(), features.detach()
    members = (labels.unsqueeze(0) == labels.unsqueeze(1)).double()
    centres = members @ start / members.sum(1, keepdim=True)

    def loss_at(x: Tensor) -> Tensor:
        distance = 1 - (F.normalize(x, dim=1) * F.normalize(centres, dim=1)).sum(1)
        return ((0.2 - distance).relu() + (distance - 0.4).relu())[:5].mean()

    plain = start.clone().requires_grad_()
    loss_at(plain).backward()
    torch.testing.assert_close(analytic, plain.grad)
    assert analytic[:5].any() and not analytic[5].any()
    assert torch.autograd.gradcheck(loss_at, plain)


@pytest.mark.parametrize("labels", [[0], [0, 1, 2], [2, 2, 1]])
def test_images_alone_in_their_class_have_no_part(labels: list[int]):
    features = draw(len(labels), 3).requires_grad_()
    loss = marginal_distance_loss(features, torch.tensor(labels), 0.5, 1.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(features.grad).all()
    for index, label in enumerate(labels):
        if labels.count(label) == 1:
            assert not features.grad[index].any()
    if len(set(labels)) == len(labels):
        assert loss.item() == 0


def test_dead_features_are_finite():
    features = draw(4, 3).float()
    features[:3] = 0
    features.requires_grad_()
    loss = marginal_distance_loss(features, torch.tensor([0, 0, 1, 1]), 0.2, 0.4)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(features.grad).all()


# precision


def test_bfloat16_networks_have_float32_losses():
    logits, labels = draw(4, 5).bfloat16(), torch.tensor([0, 1, 0, 1])
    targets, confidence = F.one_hot(labels, 5).float(), torch.full((4,), 0.9)
    for loss, wanted in (
        (classification_loss(logits, targets), classification_loss(logits.float(), targets)),
        (soft_inception_loss(logits, labels, confidence), soft_inception_loss(logits.float(), labels, confidence)),
        (marginal_distance_loss(logits, labels, 0.1, 0.2), marginal_distance_loss(logits.float(), labels, 0.1, 0.2)),
    ):
        assert loss.dtype == torch.float32 and loss.shape == () and torch.equal(loss, wanted)
