"""Mean average precision of boxes made by hand."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from genie_cli.errors import InputError, UsageError
from genie_cli.evaluation.metrics.detection import Detection, check_installed


def boxes(*rows: tuple[float, ...], scores: list[float] | None = None, labels: list[int] | None = None) -> Any:
    image: dict[str, Tensor] = {"boxes": torch.tensor(rows).view(-1, 4)}
    image["labels"] = torch.tensor(labels if labels is not None else [0] * len(rows))
    return image if scores is None else {**image, "scores": torch.tensor(scores)}


def measured(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    metric = Detection()
    for found, wanted in pairs:
        metric.update([found], [wanted])
    return metric.compute()


WANTED = boxes((0, 0, 100, 100), (200, 200, 300, 300), labels=[0, 1])


def test_boxes_that_are_all_found() -> None:
    found = boxes((0, 0, 100, 100), (200, 200, 300, 300), labels=[0, 1], scores=[0.9, 0.8])
    assert measured((found, WANTED)) == {"map": 100, "map50": 100, "map75": 100}


def test_a_shifted_box_counts_at_low_thresholds() -> None:
    """An overlap of 70 of 130: IoU 0.538, over the first threshold of ten. The other class is found wholly."""
    found = boxes((0, 0, 100, 100), (230, 200, 330, 300), labels=[0, 1], scores=[0.9, 0.8])
    assert measured((found, WANTED)) == {"map": 55, "map50": 100, "map75": 50}


def test_labels_and_false_boxes_count() -> None:
    wrong_class = boxes((0, 0, 100, 100), (200, 200, 300, 300), labels=[1, 0], scores=[0.9, 0.8])
    assert measured((wrong_class, WANTED))["map50"] == 0
    one = boxes((0, 0, 100, 100))
    surer = boxes((0, 0, 100, 100), (500, 500, 600, 600), scores=[0.8, 0.9])  # precision 1/2 at the one recall
    assert measured((surer, one))["map50"] == 50


def test_images_without_boxes() -> None:
    empty, nothing = boxes(), boxes(scores=[])
    assert measured((nothing, WANTED))["map50"] == 0
    assert all(math.isnan(value) for value in measured((nothing, empty)).values())


@pytest.mark.parametrize(
    ("found", "described"),
    [
        (torch.zeros(1, 6), r"a tensor \[1, 6\] of float32"),
        (
            [{"boxes": torch.zeros(2, 4), "labels": torch.zeros(2)}],
            r"a list of 1, the first a dict \{'boxes': \[2, 4\]",
        ),
        ([{**boxes((0, 0, 1, 1)), "scores": torch.zeros(2)}], r"'scores': \[2\]"),
        ([{**boxes((0, 0, 1, 1)), "scores": [0.5]}], "'scores': a list of 1"),
        ([{"boxes": torch.zeros(2, 5), "labels": torch.zeros(2), "scores": torch.zeros(2)}], r"'boxes': \[2, 5\]"),
    ],
)
def test_outputs_that_are_no_boxes(found: Any, described: str) -> None:
    with pytest.raises(
        InputError, match=rf"Metric detection takes a list with a dict per image.*{described}.*--decode"
    ):
        Detection().update(found, [WANTED])


@pytest.mark.parametrize("targets", [torch.zeros(1), None, [], [WANTED, WANTED], [{"boxes": torch.zeros(1, 4)}]])
def test_targets_that_are_no_boxes(targets: Any) -> None:
    with pytest.raises(InputError, match=r"boxes .* for each of the 1 images, and the data give"):
        Detection().update([boxes(scores=[])], targets)


@pytest.mark.parametrize("missing", ["pycocotools", "torchmetrics"])
def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UsageError, match=rf"needs the package {missing}, .*: pip install 'genie-cli\[tasks\]'"):
        check_installed()
