"""Exported files of the families of torchvision: both formats answer as the loaded network does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.commands.conftest import Genie

pytestmark = pytest.mark.slow
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FAMILIES = ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "efficientnet_b0", "densenet121"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coloured noise, whose channels differ in mean and spread."""
    path = tmp_path_factory.mktemp("noise") / "noise.safetensors"
    draws = torch.Generator().manual_seed(0)
    coarse = torch.nn.functional.interpolate(torch.randn(8, 3, 16, 16, generator=draws), size=64, mode="bilinear")
    pixels = 60 * coarse + 15 * torch.randn(8, 3, 64, 64, generator=draws) + 128
    save_file({"images": pixels.clamp(0, 255).to(torch.uint8)}, path)
    return path


@pytest.mark.parametrize("protocol", ["genie", "integer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_a_family(genie: Genie, images: Path, family: str, protocol: str, tmp_path: Path) -> None:
    model = ("--model", f"torchvision.models:{family}")
    genie(
        "quantize", *model, "--input-size", 64, "--images", images, "--preset", "minmax", "--protocol", protocol,
        "--weight-bits", 8, "--activation-bits", 8, "--out", tmp_path / "q",
    )  # fmt: skip
    for format in ("onnx", "pt2"):
        file = tmp_path / f"model.{format}"
        q = ("--quantized", tmp_path / "q", "--images", images, "--min-agreement", 0)  # of classes, which are random
        genie("export", *model, *q, "--format", format, "--out", file)
        report = json.loads((tmp_path / f"model.{format}.export.json").read_text())
        (difference,) = report["differences"].values()
        assert difference["mean"] <= 0.02 * difference["magnitude"]
        assert report["num_bytes"] < 0.45 * report["num_float_bytes"]
        if format == "onnx" and protocol == "integer":
            assert report["num_integer_layers"] == report["num_layers"] > 15
        if format == "onnx" and protocol == "integer" and family in ("resnet18", "mobilenet_v2"):
            assert report["float_islands"] == []
