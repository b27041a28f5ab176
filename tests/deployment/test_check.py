"""The difference between a file's answers and genie's, and which output counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genie_cli.artifacts.export_report import described_agreement, exported_file, report_path
from genie_cli.deployment.check import OutputDifference, _difference, worst_output


def of(agreement: float) -> OutputDifference:
    return OutputDifference(0.0, 0.0, 1.0, agreement)


@pytest.mark.parametrize(
    ("agreements", "logits", "worst"),
    [
        ({"map": 0.25, "scores": 1.0}, "scores", "map"),
        ({"map": 1.0, "scores": 0.9}, "scores", "scores"),
        ({"map": 1.0, "scores": 1.0}, "scores", "scores"),
        ({"a": 1.0, "b": 0.5, "c": 0.5}, None, "b"),
    ],
)
def test_the_worst_output_counts(agreements: dict[str, float], logits: str | None, worst: str) -> None:
    assert worst_output({name: of(value) for name, value in agreements.items()}, logits) == worst


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.bool_])
def test_integers_agree_where_they_are_equal(kind: type) -> None:
    wanted = np.array([[0, 1, 1, 0]], dtype=kind)
    found = np.array([[0, 1, 0, 0]], dtype=kind)
    assert _difference([found], [wanted], is_scores=False).agreement == 0.75
    places = np.array([1000, 960], dtype=np.int64)
    assert _difference([places], [np.array([1000, 1000], dtype=np.int64)], is_scores=False).agreement == 0.5


def test_floats_agree_where_they_are_close() -> None:
    wanted, found = np.array([[1.0, 100.0]]), np.array([[5.9, 94.0]])
    assert _difference([found], [wanted], is_scores=False).agreement == 0.5


def test_words_name_the_output_that_counts() -> None:
    report = {"agreement": 0.25, "num_images": 40, "logits": "scores", "agreement_of": "map"}
    assert described_agreement(report) == "25.00% of the values of 'map', 40 images"
    assert described_agreement({**report, "agreement_of": "scores"}) == "25.00% of 40 images"


@pytest.mark.parametrize(
    ("name", "report", "file"),
    [
        ("model.onnx.export.json", {"format": "onnx"}, "model.onnx"),
        ("model.export.json", {"format": "pt2"}, "model.pt2"),
        ("m.v2.export.json", {}, "m.v2"),
    ],
)
def test_a_report_says_which_file_it_is_of(name: str, report: dict[str, str], file: str) -> None:
    assert exported_file(Path("folder") / name, report) == file
    assert report_path(Path("folder/model.onnx")).name == "model.onnx.export.json"
