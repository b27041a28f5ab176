"""Mean IoU and pixel accuracy against NumPy, pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from genie_cli.errors import InputError
from genie_cli.evaluation.metrics.segmentation import PixelAgreement, Segmentation


def measured(outputs: Any, targets: Any, ignore_class: int | None = None, any_proportions: bool = False) -> Any:
    metric = Segmentation(ignore_class, 0.0, any_proportions)
    metric.update(outputs, targets)
    return metric.compute()


def logits_of(classes: np.ndarray, num_classes: int) -> Tensor:
    """Logits whose largest value is that of the class."""
    return F.one_hot(torch.from_numpy(classes), num_classes).permute(0, 3, 1, 2).float()


def oracle(found: np.ndarray, labels: np.ndarray, num_classes: int, ignored: int | None) -> dict[str, Any]:
    counted = labels != ignored if ignored is not None else np.ones_like(labels, bool)
    ious = {}
    for c in range(num_classes):
        own, theirs = (found == c) & counted, (labels == c) & counted
        if c != ignored and (own | theirs).any():
            ious[str(c)] = 100 * (own & theirs).sum() / (own | theirs).sum()
    return {
        "miou": np.mean(list(ious.values())) if ious else 0.0,
        "pixel_accuracy": 100 * (found == labels)[counted].mean() if counted.any() else 0.0,
        "per_class": ious,
    }


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32), num_classes=st.integers(2, 6), num_images=st.integers(1, 4),
    ignored=st.sampled_from([None, 0, 1, 255]), as_classes=st.booleans(),
)  # fmt: skip
def test_against_numpy(seed: int, num_classes: int, num_images: int, ignored: int | None, as_classes: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = (num_images, rng.integers(1, 7), rng.integers(1, 7))
    found, labels = rng.integers(0, num_classes, shape), rng.integers(0, num_classes, shape)
    if ignored == 255:
        labels[rng.random(shape) < 0.3] = 255
    outputs = torch.from_numpy(found) if as_classes else logits_of(found, num_classes)
    result = measured(outputs, torch.from_numpy(labels), ignored)
    expected = oracle(found, labels, num_classes, ignored)
    assert result["per_class"] == pytest.approx(expected["per_class"], abs=1e-4)
    for key in ("miou", "pixel_accuracy"):
        assert result[key] == pytest.approx(expected[key], abs=1e-4)


def test_by_hand() -> None:
    """The void class 2: a label of it does not count, a prediction of it is wrong; class 3 is not met."""
    labels = torch.tensor([[[0, 0, 1, 1, 2]]])
    found = np.array([[[0, 1, 1, 2, 0]]])
    result = measured(logits_of(found, 4), labels, ignore_class=2)
    assert result == {"miou": 41.6667, "pixel_accuracy": 50.0, "per_class": {"0": 50.0, "1": 33.3333}}


def test_batches_and_processes_add_up() -> None:
    rng = np.random.default_rng(0)
    found, labels = rng.integers(0, 3, (5, 4, 4)), torch.from_numpy(rng.integers(0, 3, (5, 4, 4)))
    outputs = logits_of(found, 3)
    parts = [Segmentation(None, 0.0, False) for _ in range(2)]
    for i in range(5):
        parts[i % 2].update(outputs[i : i + 1], labels[i : i + 1])
    for own, other in zip(parts[0].counts(), parts[1].counts(), strict=True):
        own += other
    assert parts[0].compute() == measured(outputs, labels)


def test_one_channel_tells_two_classes_apart() -> None:
    outputs, labels = torch.tensor([[[[-1.0, 0.2, 0.7]]]]), torch.tensor([[[0, 1, 1]]])
    assert measured(outputs, labels)["pixel_accuracy"] == 100
    probability = Segmentation(None, 0.5, False)
    probability.update(outputs, labels)
    assert probability.compute()["per_class"] == {"0": 50.0, "1": 50.0}


def test_logits_are_resized_to_the_class_map() -> None:
    outputs = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(outputs, (8, 12), mode="bilinear", align_corners=False).argmax(1)
    assert measured(outputs, large)["miou"] == 100
    ragged = [large[0], F.interpolate(outputs[1:], (4, 6), mode="bilinear").argmax(1)[0]]
    assert measured(outputs, ragged)["miou"] == 100


@pytest.mark.parametrize(
    ("outputs", "targets", "problem"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4, 4).long(), r"takes logits .* gives a tensor \[2, 3\] of float32"),
        ({"out": torch.zeros(1, 3, 4, 4)}, torch.zeros(1, 4, 4).long(), r"gives a dict \{'out': \[1, 3, 4, 4\]\}"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1).long(), r"a class map for each .* the data give a tensor \[1\]"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4), r"the data give a tensor \[1, 4, 4\] of float32"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(1, 4, 4).long(), r"integers \[2, height, width\]"),
        (torch.zeros(1, 3, 4, 6), torch.zeros(1, 6, 4).long(), "class map is 6x4 .* output 4x6"),
        (torch.zeros(1, 4, 4).long(), torch.zeros(1, 8, 8).long(), "class map is 8x8 .* output 4x4"),
        (torch.zeros(1, 3, 1, 1), torch.full((1, 1, 1), 255), "holds class 255 .* 0 to 2: .* --ignore-class 255"),
        (torch.zeros(1, 3, 1, 1), torch.full((1, 1, 1), -1), "holds class -1"),
    ],
)
def test_what_cannot_be_compared(outputs: Any, targets: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        measured(outputs, targets)


def test_any_proportions_where_images_were_squeezed() -> None:
    assert measured(torch.rand(1, 3, 4, 6), torch.zeros(1, 6, 4).long(), any_proportions=True)["pixel_accuracy"] >= 0


def test_agreement_of_pixels() -> None:
    one, other = np.array([[[0, 1, 2, 0]]]), np.array([[[0, 1, 1, 0]]])
    metric = PixelAgreement(0.0)
    metric.update(logits_of(one, 3), logits_of(other, 3))
    metric.update(torch.tensor([[[1, 1]]]), torch.tensor([[[1, 1]]]))
    assert metric.compute() == {"agreement": round(100 * 5 / 6, 4)}
