"""The input of a user's own network is given once: the artifacts that are made of it say it from then on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from genie_cli.app import app

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm = nn.Conv2d(2, 6, 3, 2), nn.BatchNorm2d(6)
        self.head = nn.Linear(6 * 7 * 7, 3)  # of 16x16 images alone

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().flatten(1))


def build():
    return Net(0)


def other():
    return Net(1)
"""
OPTIONS = ("--num-channels", "2", "--input-size", "16", "--mean", "0.4,0.5", "--std", "0.2,0.3")


def genie(*args: object, code: int = 0) -> tuple[str, str]:
    """Standard output and error of a command."""
    outcome = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="genie")
    assert outcome.exit_code == code, (outcome.output, outcome.exception)
    return outcome.stdout, " ".join(outcome.stderr.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network, its images and its quantized folder, all made with the options."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "recorded_input_network.py").write_text(NETWORK)
    model = ("--model", f"{folder}/recorded_input_network.py:build")
    images = folder / "images.safetensors"
    genie("synthesize", *model, *OPTIONS, "--n", 4, "--num-steps", 2, "--batch-size", 4, "--out", images)
    quantize = ("quantize", *model, "--images", images, "--preset", "minmax", "--precision", "fp32")
    genie(*quantize, *OPTIONS, "--out", folder / "with")
    said = genie(*quantize, "--out", folder / "without")[1]
    assert "assumed" not in said
    pixels = torch.randint(0, 256, (6, 2, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_file({"images": pixels, "labels": torch.arange(6) % 3}, folder / "data.safetensors")
    return folder


def test_quantize_takes_it_from_the_images(made: Path) -> None:
    for name in ("weights.safetensors", "step_sizes.safetensors", "metrics.json"):
        assert (made / "with" / name).read_bytes() == (made / "without" / name).read_bytes()


def test_verify_takes_it_from_the_folder_and_from_the_images(made: Path) -> None:
    model = ("--model", f"{made}/recorded_input_network.py:build")
    assert "those that were recorded" in genie("verify", made / "with", *model)[0]
    assert "the images were made for it" in genie("verify", made / "images.safetensors", *model)[0]


def test_evaluate_takes_it_from_the_folder(made: Path) -> None:
    command = ("evaluate", "--model", f"{made}/recorded_input_network.py:build", "--data", made / "data.safetensors")
    quantized = (*command, "--quantized", made / "with", "--json")
    without, said = genie(*quantized)
    assert json.loads(without) == json.loads(genie(*quantized, *OPTIONS)[0])
    assert "assumed" not in said


def test_synthesize_takes_it_from_a_student(made: Path, tmp_path: Path) -> None:
    model = ("--model", f"{made}/recorded_input_network.py:build")
    options = ("--preset", "zaq", "--student", made / "with", "--n", 2, "--num-steps", 1, "--batch-size", 2)
    genie("synthesize", *model, *options, "--out", tmp_path / "i.safetensors")


def test_an_option_that_differs_wins_with_a_warning(made: Path) -> None:
    command = ("evaluate", "--model", f"{made}/recorded_input_network.py:build", "--data", made / "data.safetensors")
    said = genie(*command, "--quantized", made / "with", "--mean", "0.4,0.6")[1]
    assert f"Warning: --mean 0.4,0.6 is not the 0.4,0.5 that {made}/with was made with: 0.4,0.6 is used." in said


def test_verify_names_the_size_and_not_damage(made: Path, tmp_path: Path) -> None:
    pooled = NETWORK.replace("self.head = nn.Linear(6 * 7 * 7, 3)", "self.head = nn.Linear(6, 3)")
    (tmp_path / "pooled_network.py").write_text(pooled.replace("flatten(1)", "mean((2, 3))"))
    model = ("--model", f"{tmp_path}/pooled_network.py:build")
    save_file({"images": torch.zeros(2, 2, 16, 16, dtype=torch.uint8)}, tmp_path / "real.safetensors")
    genie(
        "quantize", *model, *OPTIONS, "--images", tmp_path / "real.safetensors", "--preset", "minmax",
        "--out", tmp_path / "q",
    )  # fmt: skip
    assert "those that were recorded" in genie("verify", tmp_path / "q", *model, "--mean", "0,0")[0]
    said = genie("verify", tmp_path / "q", *model, "--input-size", 32, code=3)[1]
    assert "--input-size 32 is not the 16 that" in said
    assert "recorded for an image of 2x16x16, and cannot be compared for one of 2x32x32" in said


def test_a_network_that_is_cast_when_it_is_loaded_takes_it_too(tmp_path: Path) -> None:
    (tmp_path / "half_network.py").write_text(f"{NETWORK}\n\ndef half():\n    return build().half()\n")
    model, images = ("--model", f"{tmp_path}/half_network.py:half"), tmp_path / "images.safetensors"
    genie("synthesize", *model, *OPTIONS, "--n", 2, "--num-steps", 1, "--batch-size", 2, "--out", images)
    genie("quantize", *model, "--images", images, "--preset", "minmax", "--out", tmp_path / "q")
    assert "those that were recorded" in genie("verify", tmp_path / "q", *model)[0]


def test_another_network_takes_nothing_from_it(made: Path) -> None:
    model = ("--model", f"{made}/recorded_input_network.py:other")
    said = genie("verify", made / "images.safetensors", *model, code=3)[1]
    assert "'recorded_input_network.py:other' does not say what images it takes" in said
    assert "--input-size 224" in said
