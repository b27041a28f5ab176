"""``genie inspect`` of files: what they are is told by their content, and odd ones end in a message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import Genie

FIGURES: dict[str, Any] = {"model": "net", "metric": "fidelity", "num_images": 4, "sqnr_db": 30.0}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"per_class": 5}, "its 'per_class' is not a valid value"),
        ({"outputs": {"logits": 5}}, "its 'outputs' is not a valid value"),
        ({"sqnr_db": "abc"}, "its 'sqnr_db' is not a valid value"),
        ({"sqnr_db": float("nan")}, "its 'sqnr_db' is not a valid value"),
        ({"weight_bits": "x"}, "its 'weight_bits' is not a valid value"),
        ({"model": "\ud800"}, r"text that is no Unicode, '\ud800'"),
    ],
)
def test_figures_that_are_shown_are_those_that_a_report_takes(genie: Genie, changes: dict[str, Any], told: str) -> None:
    pytest.importorskip("matplotlib")
    Path("m.json").write_text(json.dumps({**FIGURES, **changes}))
    for command in (("inspect", "m.json"), ("report", "m.json"), ("report", "m.json", "--html", "r.html")):
        error = genie(*command, code=3).stderr
        assert "Error: m.json holds" in error and told in error
    assert sorted(path.name for path in Path().iterdir()) == ["m.json"]


def test_a_figure_that_was_not_finite_is_none(genie: Genie) -> None:
    figures = {"metric": "segmentation", "miou": None, "per_class": {"road": None, "sky": 50.0}, "outputs": {}}
    Path("m.json").write_text(json.dumps({**FIGURES, **figures}))
    lines = [line.split() for line in genie("inspect", "m.json").stdout.splitlines()]
    assert ["miou", "none"] in lines and ["road", "none"] in lines and ["sky", "50.00"] in lines


def test_outputs_with_figures_of_their_own(genie: Genie) -> None:
    outputs = {"boxes": {"cosine": 0.5}, "scores": {"sqnr_db": 3.0}}
    Path("m.json").write_text(json.dumps({**FIGURES, "outputs": outputs}))
    lines = [line.split() for line in genie("inspect", "m.json").stdout.splitlines()]
    assert ["boxes", "0.5", "none"] in lines and ["scores", "none", "3"] in lines


def test_an_artifact_of_any_name_is_known_by_its_content(genie: Genie, images: Path) -> None:
    shutil.copy(images, "plain.st")
    assert "Pixels, from 0" in genie("inspect", "plain.st").stdout
    Path("figures").write_text(json.dumps(FIGURES))
    assert "figures of 'genie evaluate --out'" in genie("inspect", "figures").stdout
    Path("weights.pth").write_bytes(b"x")
    assert "weights.pth is" in genie("inspect", "weights.pth", code=3).stderr


def test_a_file_of_code_is_part_of_a_spec(genie: Genie) -> None:
    Path("nets.py").write_text("def net(): ...\n")
    assert "own code is FILE.py:FACTORY" in genie("inspect", "nets.py", code=2).stderr


def test_a_file_called_as_a_network_does_not_hide_it(genie: Genie) -> None:
    Path("digits_resnet").write_text("{}")
    told = genie("inspect", "digits_resnet")
    assert "Weight layers" in told.stdout
    assert "and a file, which ./digits_resnet names" in " ".join(told.stderr.split())
