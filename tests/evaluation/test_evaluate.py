"""Accuracy and agreement against NumPy, on networks whose logits are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genie_cli.data.labeled import LabeledImages
from genie_cli.evaluation.evaluate import STAGE, Evaluation
from genie_cli.runtime.distribution import Workers
from genie_cli.runtime.progress import Advanced, Event, Note, StageFinished, StageStarted
from tests.support.stages import evaluate


class Numbered(LabeledImages):
    """Image i is filled with i, so that a network can look its logits up."""

    def __init__(self, labels: Tensor, class_names: list[str] | None = None) -> None:
        super().__init__(labels, None, class_names)

    def pixels(self, rows: Sequence[int]) -> Tensor:
        raise AssertionError("an evaluation reads batches")

    def batches(self, batch_size: int, share: range | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in self.rows(batch_size, share):
            indices = torch.arange(rows.start, rows.stop)
            yield indices.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2), self.labels[indices]


class Lookup(nn.Module):
    """The logits of a table for the images of `Numbered`; keeps the sizes of the batches it saw."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits = torch.from_numpy(logits).float()
        self.batch_sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.batch_sizes.append(len(images))
        return self.logits[images[:, 0, 0, 0].long()]


def distinct_logits(rng: np.random.Generator, num_images: int, num_classes: int) -> np.ndarray:
    """Without ties, whose order NumPy and torch may see differently."""
    return rng.permuted(np.tile(np.arange(num_classes, dtype=np.float64), (num_images, 1)), axis=1)


def oracle(logits: np.ndarray, labels: np.ndarray, teacher: np.ndarray | None) -> dict[str, Any]:
    ranking = np.argsort(-logits, axis=1)
    figures: dict[str, Any] = {
        "num_images": len(labels),
        "top1": 100 * np.mean(ranking[:, 0] == labels),
        "top5": 100 * np.mean((ranking[:, :5] == labels[:, None]).any(axis=1)),
        "per_class": {str(label): 100 * np.mean(ranking[labels == label, 0] == label) for label in np.unique(labels)},
    }
    if teacher is not None:
        guesses = np.argmax(teacher, axis=1)
        figures["teacher_top1"] = 100 * np.mean(guesses == labels)
        figures["agreement"] = 100 * np.mean(guesses == ranking[:, 0])
        figures["drop"] = figures["teacher_top1"] - figures["top1"]
    return figures


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_images=st.integers(1, 40),
    num_classes=st.integers(2, 12),  # one output is a binary network, see test_decision.py
    batch_size=st.integers(1, 50),
    with_teacher=st.booleans(),
)
def test_against_numpy(seed: int, num_images: int, num_classes: int, batch_size: int, with_teacher: bool) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_images)
    logits = distinct_logits(rng, num_images, num_classes)
    teacher = distinct_logits(rng, num_images, num_classes) if with_teacher else None
    result = evaluate(
        Lookup(logits),
        Numbered(torch.from_numpy(labels)),
        num_classes,
        batch_size,
        teacher=Lookup(teacher) if teacher is not None else None,
    )
    expected = oracle(logits, labels, teacher)
    measured = result.as_json()
    assert measured.keys() == expected.keys()
    for key, value in expected.items():
        assert measured[key] == pytest.approx(value, abs=1.01e-4), key


def test_by_hand() -> None:
    """Six classes, so that the top five can miss; class 3 has no images."""
    logits = np.array(
        [
            [6, 5, 4, 3, 2, 1],  # says 0
            [6, 5, 4, 3, 2, 1],  # says 0, and 5 is its last guess
            [1, 6, 5, 4, 3, 2],  # says 1
            [1, 2, 6, 5, 4, 3],  # says 2
        ],
        dtype=np.float64,
    )
    teacher = logits.copy()
    teacher[1] = [1, 2, 3, 4, 5, 6]  # says 5
    data = Numbered(torch.tensor([0, 5, 1, 1]), ["a", "b", "c", "d", "e", "f"])
    assert evaluate(Lookup(logits), data, 6, 3, teacher=Lookup(teacher)).as_json() == {
        "num_images": 4,
        "top1": 50.0,
        "top5": 75.0,
        "teacher_top1": 75.0,
        "drop": 25.0,
        "agreement": 75.0,
        "per_class": {"a": 100.0, "b": 50.0, "f": 0.0},
    }


def test_json_of_a_student_and_of_a_teacher() -> None:
    own = {"top1": 60.1234, "top5": 90.0, "per_class": {"0": 60.1234}}
    student = Evaluation(10, own, {"top1": 70.0, "top5": 95.0, "per_class": {}}, {"agreement": 80.0}, ("top1",))
    figures = {
        "num_images": 10, "top1": 60.1234, "top5": 90.0, "teacher_top1": 70.0, "drop": 9.8766, "agreement": 80.0,
        "per_class": {"0": 60.1234},
    }  # fmt: skip
    assert list(student.as_json().items()) == list(figures.items())
    assert Evaluation(10, {"top1": 71.0}, {"top1": 70.0}, compared=("top1",)).as_json()["drop"] == -1.0
    assert Evaluation(10, own, compared=("top1",)).as_json() == {"num_images": 10, **own}


def test_every_number_of_an_own_metric_is_compared() -> None:
    found = Evaluation(3, {"b": 1.5, "a": 2.0, "curve": [1.0, 2.0]}, {"b": 1.0, "a": 2.25, "curve": [0.0, 0.0]})
    assert list(found.as_json().items()) == [
        ("num_images", 3), ("b", 1.5), ("a", 2.0), ("curve", [1.0, 2.0]),
        ("teacher_b", 1.0), ("drop", -0.5), ("teacher_a", 2.25), ("drop_a", 0.25),
    ]  # fmt: skip


def test_numbers_that_json_lacks_become_none() -> None:
    found = Evaluation(1, {"x": float("nan"), "y": [float("inf"), 1.0]}, pair={"z": {"w": float("-inf")}})
    assert found.as_json() == {"num_images": 1, "x": None, "y": [None, 1.0], "z": {"w": None}}


def test_shares_have_four_decimals() -> None:
    data = Numbered(torch.tensor([0, 0, 0]))
    result = evaluate(Lookup(np.array([[1.0, 0], [0, 1], [0, 1]])), data, 2, 3)
    assert (result.own["top1"], result.own["per_class"]) == (33.3333, {"0": 33.3333})


def test_fewer_than_five_classes_are_all_in_the_top() -> None:
    data = Numbered(torch.tensor([0, 1, 2, 2]))
    assert evaluate(Lookup(np.eye(4)[:, :3]), data, 3, 2).own["top5"] == 100.0


def test_batches_and_progress() -> None:
    network, events = Lookup(np.eye(5)), list[Event]()
    evaluate(network, Numbered(torch.tensor([0, 1, 2, 3, 0])), 5, 2, report=events.append)
    assert network.batch_sizes == [2, 2, 1]
    assert events == [
        StageStarted(STAGE, 5, "images"),
        Advanced(STAGE, 2, values={"top1": 100.0}),
        Advanced(STAGE, 4, values={"top1": 100.0}),
        Advanced(STAGE, 5, values={"top1": 80.0}),
        StageFinished(STAGE),
    ]


class Short(Lookup):
    """Has no memory for more than 3 images."""

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 3:
            raise MemoryError
        return super().forward(images)


def test_memory_that_runs_out_changes_nothing_but_the_pieces() -> None:
    rng, events = np.random.default_rng(0), list[Event]()
    logits, teacher = distinct_logits(rng, 20, 6), distinct_logits(rng, 20, 6)
    data = Numbered(torch.from_numpy(rng.integers(0, 6, 20)))
    short = Short(logits)
    result = evaluate(short, data, 6, 9, teacher=Short(teacher), report=events.append)
    assert result == evaluate(Lookup(logits), data, 6, 9, teacher=Lookup(teacher))
    assert sum(short.batch_sizes) == 20
    notes = [event for event in events if isinstance(event, Note)]
    assert notes == [Note("9 images at once do not fit into memory: going on with fewer.", warning=True)]


class Second(Workers):
    """The second of three processes, the others of which count nothing."""

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor


def test_a_process_takes_whole_batches_of_its_own() -> None:
    """Batches 1 and 4 of five: images 2, 3 and 8."""
    network, events = Lookup(np.eye(9)), list[Event]()
    data = Numbered(torch.tensor([0, 1, 2, 4, 4, 5, 6, 7, 8]))
    result = evaluate(network, data, 9, 2, report=events.append, workers=Second(1, 3))
    assert network.batch_sizes == [2, 1]
    assert (result.num_images, result.own["top1"]) == (3, 66.6667)
    assert result.own["per_class"] == {"2": 100.0, "4": 0.0, "8": 100.0}
    assert [event.done for event in events if isinstance(event, Advanced)] == [6, 9]
    assert events[0] == StageStarted(STAGE, 9, "images")


def test_a_process_without_batches_counts_nothing() -> None:
    network = Lookup(np.eye(2))
    result = evaluate(network, Numbered(torch.tensor([0, 1])), 2, 2, workers=Second(1, 3))
    assert network.batch_sizes == []
    assert (result.num_images, result.own["top1"], result.own["per_class"]) == (0, 0.0, {})


class Watching(nn.Module):
    """Logits by a convolution; keeps the dtype and layout of its work."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.seen: list[tuple[torch.dtype, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        y = self.conv(images)
        self.seen.append((y.dtype, images.is_contiguous(memory_format=torch.channels_last)))
        return y.mean((2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arithmetic(dtype: torch.dtype) -> None:
    network, teacher = Watching(), Watching()
    evaluate(network, Numbered(torch.tensor([0, 1, 0])), 2, 2, dtype=dtype, teacher=teacher)
    assert network.seen == teacher.seen == [(dtype, True)] * 2
