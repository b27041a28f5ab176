"""The command line around users' code and folders: results alone on standard output, and names before folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import rand
from typer.testing import CliRunner, Result

from genie_cli.app import app

TALKATIVE = """
import sys
from torch import nn

print("imported")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        print("made")
        self.conv, self.head = nn.Conv2d(1, 2, 3), nn.Linear(2, 2)
        self.conv.register_forward_hook(lambda *args: print("hooked", file=sys.stdout))

    def forward(self, x):
        print("called with", tuple(x.shape)[1:])
        return self.head(self.conv(x).relu().mean((2, 3)))


def build():
    print("building")
    return Net()
"""
INPUT = ("--num-channels", "1", "--input-size", "8", "--mean", "0", "--std", "1")


def genie(*args: object, code: int = 0) -> Result:
    outcome = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="genie")
    assert outcome.exit_code == code, (outcome.output, outcome.exception)
    return outcome


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talkative_network.py").write_text(TALKATIVE)
    return tmp_path


def test_prints_of_a_network_go_to_standard_error(folder: Path) -> None:
    outcome = genie("inspect", "talkative_network.py:build", *INPUT, "--json")
    assert json.loads(outcome.stdout)["num_classes"] == 2
    for said in ("imported", "building", "made", "hooked", "called with (1, 8, 8)"):
        assert said in outcome.stderr


def test_prints_do_not_break_an_evaluation(folder: Path) -> None:
    save_file({"images": (rand(4, 1, 8, 8) * 255).byte(), "labels": (rand(4) > 0.5).long()}, folder / "d.safetensors")
    outcome = genie("evaluate", "--model", "talkative_network.py:build", *INPUT, "--data", "d.safetensors", "--json")
    assert json.loads(outcome.stdout)["num_images"] == 4
    assert "building" in outcome.stderr


def test_a_network_of_the_list_ranks_above_a_folder_of_its_name(folder: Path) -> None:
    (folder / "digits_resnet").mkdir()
    outcome = genie("inspect", "digits_resnet", "--json")
    assert json.loads(outcome.stdout)["model"] == "digits_resnet"
    assert "./digits_resnet names" in " ".join(outcome.stderr.split())
    assert "no quantized network" in genie("inspect", "./digits_resnet", code=3).stderr


def test_any_other_folder_is_an_artifact(folder: Path) -> None:
    (folder / "resnet").mkdir()
    assert "Folder resnet is no quantized network" in genie("inspect", "resnet", code=3).stderr


def test_a_folder_called_as_weights_is_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
    (folder / "IMAGENET1K_V1").mkdir()
    genie("inspect", "resnet18", "--weights", "IMAGENET1K_V1", "--input-size", 32)
