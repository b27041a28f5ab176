"""Exported files of real networks, where `GENIE_KITS` names the folder that holds them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.commands.conftest import Genie

KITS = os.environ.get("GENIE_KITS")
pytestmark = [pytest.mark.kit, pytest.mark.skipif(KITS is None, reason="GENIE_KITS is not set")]
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CHECKED = 2000
FLOAT_LAYERS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


@pytest.mark.slow
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 8), (4, 8), (4, 4)])
def test_a_network_in_integers_gives_the_answers_of_genie(
    genie: Genie, tmp_path: Path, weight_bits: int, activation_bits: int
) -> None:
    assert KITS is not None
    kit = Path(KITS).resolve() / "cifar10"
    model = ("--model", "cifar_resnet20", "--weights", kit / "resnet20.safetensors")
    genie(
        "quantize", *model, "--images", kit / "train5120.safetensors", "--num-images", 64, "--preset", "mse",
        "--protocol", "integer", "--weight-bits", weight_bits, "--activation-bits", activation_bits,
        "--out", tmp_path / "q",
    )  # fmt: skip
    images = ("--images", kit / "test.safetensors", "--check-images", CHECKED)
    genie("export", *model, "--quantized", tmp_path / "q", *images, "--out", tmp_path / "q.onnx")
    report = json.loads((tmp_path / "q.onnx.export.json").read_text())
    flips = report["differences"]["output"]["flips"]
    assert report["agreement"] >= 0.995
    if report["processor_has_vnni"]:  # else products of 8-bit weights may saturate
        assert report["differences"]["output"]["mean"] < 1e-3 * report["differences"]["output"]["magnitude"]
    assert len(flips) == round((1 - report["agreement"]) * CHECKED)
    assert [flip["margin"] for flip in flips] == sorted((flip["margin"] for flip in flips), reverse=True)
    assert not FLOAT_LAYERS & report["operators"].keys()
    assert report["num_integer_layers"] == report["num_layers"] == 20
    assert report["float_islands"] == []
