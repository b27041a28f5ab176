"""Conditioned latents against lookups and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from genie_cli.synthesis.conditioning import LabelConditioning, SuperposedConditioning, draw_superpositions


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# labels


def test_label_conditioning_is_the_product_with_a_lookup():
    torch.manual_seed(0)
    module, noise = LabelConditioning(5, 7), draw(4, 7).requires_grad_()
    labels, weight = torch.tensor([2, 0, 2, 4]), draw(4, 7, seed=1)
    latents = module(noise, labels)
    assert torch.equal(latents, noise * module.embeddings[labels])
    (latents * weight).sum().backward()
    wanted = torch.zeros(5, 7).index_add(0, labels, weight * noise.detach())
    torch.testing.assert_close(module.embeddings.grad, wanted)
    torch.testing.assert_close(noise.grad, weight * module.embeddings.detach()[labels])
    assert not module.embeddings.grad[[1, 3]].any()  # no image of these classes


def test_embeddings_are_normal_and_follow_the_seed():
    torch.manual_seed(3)
    module = LabelConditioning(100, 64)
    torch.manual_seed(3)
    assert torch.equal(module.embeddings, LabelConditioning(100, 64).embeddings)
    assert abs(float(module.embeddings.detach().mean())) < 0.05
    assert float(module.embeddings.detach().std()) == pytest.approx(1, abs=0.05)


def test_one_class_shares_one_embedding():
    module, noise = LabelConditioning(1, 3), draw(2, 3)
    assert torch.equal(module(noise, torch.zeros(2, dtype=torch.int64)), noise * module.embeddings)


# superpositions


def numpy_superposition(
    module: SuperposedConditioning, noise: Tensor, classes: Tensor, shares: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Image by image and class by class."""
    parameters = [p.detach().double().numpy() for p in (module.embeddings, module.mapping.weight, module.mapping.bias)]
    embeddings, weight, bias = parameters
    latents, targets = noise.detach().double().numpy().copy(), np.zeros((len(noise), len(embeddings)))
    for image in range(len(noise)):
        for label, share in zip(classes[image].tolist(), shares[image].tolist(), strict=True):
            row = embeddings[label]
            row = (row - row.mean()) / np.sqrt(row.var() + 1e-5)
            latents[image] += share * (weight @ row + bias)
            targets[image, label] += share
    return latents, targets


@pytest.mark.parametrize("features", [None, 11])
@pytest.mark.parametrize("num_mixed", [1, 2, 5])
def test_superposition_is_that_of_numpy(features: int | None, num_mixed: int):
    torch.manual_seed(0)
    weights = None if features is None else 0.05 * draw(4, features, seed=5)
    module, noise = SuperposedConditioning(4, 6, weights), draw(8, 6)
    classes, shares = draw_superpositions(torch.arange(8) % 4, 4, num_mixed, 0.7, seeded())
    latents, targets = module(noise, classes, shares)
    wanted_latents, wanted_targets = numpy_superposition(module, noise, classes, shares)
    np.testing.assert_allclose(latents.detach().numpy(), wanted_latents, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(targets.numpy(), wanted_targets, atol=1e-6)


def test_embeddings_start_as_the_classifier_and_are_no_part_of_it():
    weights = draw(4, 9).requires_grad_()
    module = SuperposedConditioning(4, 6, weights)
    assert torch.equal(module.embeddings, weights)
    with torch.no_grad():
        module.embeddings.zero_()
    assert weights.any()
    of_convolution = SuperposedConditioning(4, 6, draw(4, 9, 1, 1).bfloat16())
    assert of_convolution.embeddings.shape == (4, 9) and of_convolution.embeddings.dtype == torch.float32


def test_superposition_passes_its_gradient_to_all_but_the_shares():
    torch.manual_seed(0)
    module, noise = SuperposedConditioning(3, 4, draw(3, 5)).double(), draw(2, 4).double().requires_grad_()
    classes, shares = torch.tensor([[0, 2], [2, 2]]), torch.tensor([[0.75, 0.25], [0.5, 0.5]]).double()
    latents, targets = module(noise, classes, shares)
    assert not targets.requires_grad
    latents.square().sum().backward()
    assert module.embeddings.grad[[0, 2]].any(1).all() and not module.embeddings.grad[1].any()
    torch.testing.assert_close(noise.grad, 2 * latents.detach())
    parameters = (module.embeddings, module.mapping.weight, module.mapping.bias, noise)
    assert torch.autograd.gradcheck(lambda *_: module(noise, classes, shares)[0], parameters)


def test_between_two_classes_lies_the_mean_of_their_latents():
    torch.manual_seed(0)
    module, noise = SuperposedConditioning(3, 4), draw(1, 4).expand(3, 4)
    classes = torch.tensor([[0, 1], [0, 1], [0, 1]])
    latents, targets = module(noise, classes, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
    torch.testing.assert_close(latents[2], (latents[0] + latents[1]) / 2)
    assert torch.equal(targets[2], torch.tensor([0.5, 0.5, 0.0]))


# what is drawn


@given(
    num_classes=st.integers(1, 12),
    num_mixed=st.integers(1, 6),
    prob=st.floats(0, 1),
    batch=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_drawn_superpositions_are_convex_and_led_by_the_label(
    num_classes: int, num_mixed: int, prob: float, batch: int, seed: int
):
    labels = torch.arange(batch) % num_classes
    classes, shares = draw_superpositions(labels, num_classes, num_mixed, prob, seeded(seed))
    assert classes.shape == shares.shape == (batch, num_mixed)
    assert (classes.dtype, shares.dtype) == (torch.int64, torch.float32)
    assert torch.equal(classes[:, 0], labels) and (classes >= 0).all() and (classes < num_classes).all()
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(1), torch.ones(batch))
    _, targets = SuperposedConditioning(num_classes, 2)(torch.zeros(batch, 2), classes, shares)
    torch.testing.assert_close(targets.sum(1), torch.ones(batch))
    assert (shares[:, 0] == shares.amax(1)).all()
    again = draw_superpositions(labels, num_classes, num_mixed, prob, seeded(seed))
    assert torch.equal(again[0], classes) and torch.equal(again[1], shares)


def test_chance_and_spread_of_superpositions():
    labels = torch.zeros(40, 100, dtype=torch.int64)
    classes, shares = draw_superpositions(labels, 10, 2, 0.4, seeded())
    assert classes.shape == (40, 100, 2)
    is_mixed = shares[..., 1] > 0
    assert 0.37 < float(is_mixed.double().mean()) < 0.43
    counts = np.bincount(classes[..., 1].flatten().numpy(), minlength=10)
    assert counts.min() > 320 and counts.max() < 480  # 400 each, deviation 19
    # the larger of two softmax shares: the sigmoid of a normal number's size, deviation sqrt 2
    sizes = np.abs(np.random.default_rng(0).normal(0, 2**0.5, 100_000))
    assert float(shares[..., 0][is_mixed].mean()) == pytest.approx((1 / (1 + np.exp(-sizes))).mean(), abs=0.02)


@pytest.mark.parametrize("num_mixed", [1, 3])
def test_no_superposition_is_the_label(num_mixed: int):
    labels = torch.tensor([3, 0, 2])
    classes, shares = draw_superpositions(labels, 4, num_mixed, 0.0, seeded())
    _, targets = SuperposedConditioning(4, 2)(torch.zeros(3, 2), classes, shares)
    assert torch.equal(targets, F.one_hot(labels, 4).float())
