"""The preset closed-form, by command."""

from __future__ import annotations

from pathlib import Path

import pytest

from genie_cli.artifacts.quantized_folder import load_quantized
from tests.commands.conftest import Genie


@pytest.mark.parametrize("protocol", ["genie", "integer"])
def test_two_runs_write_the_same_network(genie: Genie, tmp_path: Path, images: Path, protocol: str) -> None:
    recipe = (
        "quantize",
        "--model",
        "digits_resnet",
        "--preset",
        "closed-form",
        "--images",
        images,
        "--protocol",
        protocol,
    )
    for name in "ab":
        genie(*recipe, "--out", tmp_path / name)
    first, second = (tmp_path / name / "weights.safetensors" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert load_quantized(tmp_path / "a").metadata.preset == "closed-form"


def test_steps_are_refused(genie: Genie, images: Path, tmp_path: Path) -> None:
    recipe = ("--preset", "closed-form", "--images", images, "--set", "reconstruct=true", "--out", tmp_path / "q")
    result = genie("quantize", "--model", "digits_resnet", *recipe, code=2)
    assert "closed_form" in result.stderr and "reconstruct = false" in result.stderr
