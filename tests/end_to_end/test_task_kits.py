"""A real segmenter and a real detector, float and quantized, where `GENIE_KITS` names the folder that holds them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from genie_cli.app import app

KITS = os.environ.get("GENIE_KITS")
pytestmark = [pytest.mark.kit, pytest.mark.slow, pytest.mark.skipif(KITS is None, reason="GENIE_KITS is not set")]
ADAPTER = '''
import fastest_det


def decode(outputs):
    """Boxes in pixels of the input: the network's own function gives them as shares."""
    found = fastest_det.decode(outputs, score_threshold=0.001, iou_threshold=0.45)
    return [{**image, "boxes": image["boxes"] * 352} for image in found]
'''


def genie(*args: object) -> str:
    outcome = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="genie")
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    return outcome.stdout


def measured(*args: object) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(genie("evaluate", *args, "--json"))
    return figures


@pytest.fixture
def camvid() -> Path:
    assert KITS is not None
    return Path(KITS).resolve() / "camvid"


@pytest.fixture
def espnet(camvid: Path) -> list[str]:
    normalisation = ["--mean", "0.4119,0.4251,0.4327", "--std", "69.90,72.69,72.13"]
    weights = ["--weights", str(camvid / "espnet.safetensors")]
    return ["--model", f"{camvid / 'espnet.py'}:espnet", *weights, "--input-size", "360x480", *normalisation]


def test_the_published_figures_of_a_segmenter(camvid: Path, espnet: list[str]) -> None:
    figures = measured(*espnet, "--data", f"segmentation:{camvid / 'test'}", "--ignore-class", 11, "--batch-size", 8)
    assert figures["miou"] == pytest.approx(57.49, abs=0.1)
    assert figures["pixel_accuracy"] == pytest.approx(86.36, abs=0.1)
    assert len(figures["per_class"]) == 11


def test_a_segmenter_quantized_on_images_alone(camvid: Path, espnet: list[str], tmp_path: Path) -> None:
    bits = ("--preset", "mse", "--weight-bits", 8, "--activation-bits", 8, "--precision", "fp32")
    genie(
        "quantize", *espnet, "--images", f"images:{camvid / 'train'}", "--num-images", 8, *bits, "--out", tmp_path / "q"
    )
    options = ("--data", f"segmentation:{camvid / 'test'}", "--ignore-class", 11, "--num-images", 16)
    figures = measured(*espnet, "--quantized", tmp_path / "q", *options, "--batch-size", 8)
    assert figures["agreement"] > 80 and figures["drop"] < 10


def test_the_published_figures_of_a_detector_and_of_the_quantized_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert KITS is not None
    coco = Path(KITS).resolve() / "coco"
    monkeypatch.syspath_prepend(str(coco))
    (tmp_path / "adapter.py").write_text(ADAPTER)
    model = ("--model", f"{coco / 'fastest_det.py'}:fastest_det", "--weights", coco / "fastest_det.safetensors")
    takes = ("--input-size", 352, "--mean", "0,0,0", "--std", "1,1,1")
    boxes = ("--data", f"detection:{coco}", "--decode", f"{tmp_path / 'adapter.py'}:decode")
    bits = ("--preset", "mse", "--weight-bits", 8, "--activation-bits", 8, "--precision", "fp32")
    images = ("--images", f"images:{coco / 'images'}", "--num-images", 32)
    genie("quantize", *model, *takes, *images, *bits, "--out", tmp_path / "q")
    both = measured(*model, "--quantized", tmp_path / "q", *boxes, "--batch-size", 16)
    assert both["drop"] < 1.5 and both["drop_map50"] < 2.5
    figures = {"map": both["teacher_map"], "map50": both["teacher_map50"]}
    assert figures["map50"] == pytest.approx(34.6, abs=0.1)
    assert figures["map"] == pytest.approx(18.4, abs=0.1)
