"""A run that was killed goes on where it was, and ends in the bytes of one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from genie_cli.app import app
from genie_cli.config import QuantizeConfig, SynthesizeConfig, build
from genie_cli.models.teacher import Teacher
from genie_cli.quantization import presets as quantizers
from genie_cli.quantization.quantize import QuantizedNetwork
from genie_cli.synthesis import presets as synthesizers
from genie_cli.synthesis.synthesize import Synthesis
from genie_cli.work.folder import ROOT
from tests.support import intervals, stages
from tests.support.killed_command import run_killed
from tests.support.networks import noise
from tests.support.recipes import MINMAX_RANGES
from tests.support.students import learned_bytes
from tests.support.work import until_done

PATIENCE = {"patience": 8, "holdout": 0.25, "num_steps": 30}


@pytest.mark.parametrize("preset", ["genie", "zeroq", "gba", "qimera", "intraq"])
def test_synthesis_goes_on_to_the_same_bytes(preset: str, digits_teacher: Teacher, tmp_path: Path):
    options = {**synthesizers.preset_options(preset), "num_steps": 25, "num_images": 4, "batch_size": 2}
    config = build(SynthesizeConfig, options, {"latent_lr_patience": 3})

    def run(work: Any) -> Synthesis:
        return stages.synthesize(digits_teacher, config, work=work)

    whole = stages.synthesize(digits_teacher, config)
    resumed, deaths = until_done(run, tmp_path, lives=4)
    assert deaths >= 2
    assert torch.equal(resumed.images, whole.images)
    assert resumed.log == whole.log


@pytest.mark.parametrize(
    ("preset", "more", "recorded_from"),
    [
        ("genie-m", {}, 2),
        ("genie-m", PATIENCE, 2),
        ("adaround", {}, 2),
        ("adaquant", {}, 2),
        ("lsq", {"num_steps": 22}, 2),  # the network is its only unit
        ("genie-m", {}, intervals.NEVER),
        ("genie-m", PATIENCE, intervals.NEVER),
    ],
)
def test_quantization_goes_on_to_the_same_bytes(
    preset: str,
    more: dict[str, Any],
    recorded_from: int,
    digits_teacher: Teacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    intervals.record_from(monkeypatch, recorded_from)
    options = {**quantizers.preset_options(preset), **MINMAX_RANGES, "num_steps": 12, "batch_size": 4, **more}
    config = build(QuantizeConfig, options)
    images = noise(12)

    def run(work: Any) -> QuantizedNetwork:
        return stages.quantize(digits_teacher, images, config, work=work, log_every=5)

    whole = stages.quantize(digits_teacher, images, config, log_every=5)
    resumed, deaths = until_done(run, tmp_path, lives=4 if len(whole.units) == 1 else 7)
    assert deaths >= 1
    assert resumed.units == whole.units
    assert learned_bytes(resumed) == learned_bytes(whole)


NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        nn.init.uniform_(self.norm.running_mean)
    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))
"""


@pytest.mark.parametrize("command", ["synthesize", "quantize"])
def test_a_network_of_other_code_starts_anew(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its weights are the same, so that only what it computes tells it from the one of the killed run."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK)
    Path("other.py").write_text(NETWORK.replace("relu()", "sigmoid()"))
    draws = torch.Generator().manual_seed(0)
    save_file({"images": torch.randint(0, 256, (8, 3, 8, 8), generator=draws, dtype=torch.uint8)}, "p.safetensors")
    own = {
        "synthesize": ("--n", "4", "--batch-size", "2", "--preset", "zeroq"),
        "quantize": ("--images", "p.safetensors"),
    }[command]
    options = (*own, "--num-steps", "60", "--checkpoint-interval", "0", "--input-size", "8", "--precision", "fp32")

    def arguments(out: str) -> list[str]:
        return [command, "--model", "net.py:Net", *options, "--out", out]

    suffix = ".safetensors" if command == "synthesize" else ""
    run_killed(*arguments("a" + suffix))
    Path("other.py").replace("net.py")
    changed, whole = (CliRunner().invoke(app, arguments(name + suffix)) for name in ("a", "b"))
    assert changed.exit_code == whole.exit_code == 0, changed.stderr
    assert "going on" not in changed.stderr
    written = [Path(name) / "weights.safetensors" if not suffix else Path(name + suffix) for name in ("a", "b")]
    assert written[0].read_bytes() == written[1].read_bytes()


def test_command_killed_with_signal_9_goes_on_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def command(out: str) -> list[str]:
        options = ("--model", "digits_resnet", "--n", "4", "--batch-size", "2", "--num-steps", "25")
        return ["synthesize", *options, "--checkpoint-interval", "0", "--out", out]

    assert CliRunner().invoke(app, command("whole.safetensors")).exit_code == 0
    run_killed(*command("resumed.safetensors"))
    assert list(Path(ROOT).glob("*/*.checkpoint*"))
    assert not Path("resumed.safetensors").exists()
    resumed = CliRunner().invoke(app, command("resumed.safetensors"))
    assert resumed.exit_code == 0
    assert "going on where an earlier run was" in resumed.stderr
    assert Path("resumed.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    assert not Path(ROOT).exists()
