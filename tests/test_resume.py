"""A run that was killed goes on where it was, and ends in the bytes of one that was not."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from genie_cli.app import app
from genie_cli.artifacts.work_folder import ROOT, WorkFolder
from genie_cli.config import ModelConfig, QuantizeConfig, SynthesizeConfig, build
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_teacher
from genie_cli.quantization import presets as quantizers
from genie_cli.quantization import reconstruction, unit_step
from genie_cli.quantization.quantize import QuantizedNetwork, quantize_network
from genie_cli.synthesis import presets as synthesizers
from genie_cli.synthesis.distill import Synthesis, synthesize_images

CPU = torch.device("cpu")


class KilledError(Exception):
    """Stands for the end of the process."""


class MortalFolder(WorkFolder):
    """Dies right after so many checkpoints or parts were written, at every chance for one."""

    def __init__(self, path: Path, lives: float) -> None:
        super().__init__(path, interval=0)
        self.lives = lives

    def save_checkpoint(self, name: str, *state: Any) -> None:
        super().save_checkpoint(name, *state)
        self._die()

    def finish(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        super().finish(name, tensors, facts)
        self._die()

    def _die(self) -> None:
        self.lives -= 1
        if self.lives <= 0:
            raise KilledError


def until_done(run: Any, folder: Path, lives: int) -> tuple[Any, int]:
    """The result of `run(work)`, killed and started again until it ends; how often it was killed."""
    for deaths in range(200):
        try:
            return run(MortalFolder(folder, lives)), deaths
        except KilledError:
            continue
    raise AssertionError("it never ended")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher(ModelConfig(name="digits_resnet"))


@pytest.mark.parametrize("preset", ["genie", "zeroq", "gba", "qimera", "intraq"])
def test_synthesis_goes_on_to_the_same_bytes(preset: str, teacher: Teacher, tmp_path: Path):
    options = {**synthesizers.preset_options(preset), "num_steps": 25, "num_images": 4, "batch_size": 2}
    config = build(SynthesizeConfig, options, {"latent_lr_patience": 3})

    def run(work: Any) -> Synthesis:
        return synthesize_images(teacher, config, CPU, torch.float32, work=work)

    whole = synthesize_images(teacher, config, CPU, torch.float32)
    resumed, deaths = until_done(run, tmp_path, lives=4)
    assert deaths >= 2
    assert torch.equal(resumed.images, whole.images)
    assert resumed.log == whole.log


@pytest.mark.parametrize(
    ("preset", "more"),
    [
        ("genie-m", {}),
        ("genie-m", {"patience": 8, "holdout": 0.25, "num_steps": 30}),
        ("adaround", {}),
        ("adaquant", {}),
        ("lsq", {"num_steps": 22}),  # the network is its only unit
    ],
)
@pytest.mark.parametrize("recorded_from", [2, 10**9])
def test_quantization_goes_on_to_the_same_bytes(
    preset: str,
    more: dict[str, Any],
    recorded_from: int,
    teacher: Teacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(reconstruction, "LOG_EVERY", 5)  # steps between two chances for a checkpoint
    monkeypatch.setattr(unit_step, "RECORD_FROM", recorded_from)
    options = {**quantizers.preset_options(preset), "num_steps": 12, "batch_size": 4, "weight_bits": 3, **more}
    config = build(QuantizeConfig, options)
    images = torch.randn(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))

    def run(work: Any) -> QuantizedNetwork:
        return quantize_network(teacher, images, config, CPU, torch.float32, work=work)

    whole = quantize_network(teacher, images, config, CPU, torch.float32)
    resumed, deaths = until_done(run, tmp_path, lives=4)
    assert deaths >= 1
    assert resumed.units == whole.units
    for name, weight in whole.weights.items():
        for part in ("codes", "scale", "zero_point"):
            assert torch.equal(getattr(resumed.weights[name], part), getattr(weight, part)), (name, part)
    steps = {name: float(activation.step_size) for name, activation in whole.activations.items()}
    assert {name: float(a.step_size) for name, a in resumed.activations.items()} == steps


KILLED = """
import os, signal, sys
from genie_cli.app import app
from genie_cli.artifacts.work_folder import WorkFolder

save = WorkFolder.save_checkpoint


def save_and_die(*args):
    save(*args)
    os.kill(os.getpid(), signal.SIGKILL)


WorkFolder.save_checkpoint = save_and_die
app(sys.argv[1:], prog_name="genie")
"""


def test_command_killed_with_signal_9_goes_on_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def command(out: str) -> list[str]:
        options = ("--model", "digits_resnet", "--n", "4", "--batch-size", "2", "--num-steps", "25")
        return ["synthesize", *options, "--checkpoint-interval", "0", "--out", out]

    assert CliRunner().invoke(app, command("whole.safetensors")).exit_code == 0
    killed = subprocess.run([sys.executable, "-c", KILLED, *command("resumed.safetensors")], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed
    assert list(Path(ROOT).glob("*/*.checkpoint*"))
    assert not Path("resumed.safetensors").exists()
    resumed = CliRunner().invoke(app, command("resumed.safetensors"))
    assert resumed.exit_code == 0
    assert "going on where an earlier run was" in resumed.stderr
    assert Path("resumed.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    assert not Path(ROOT).exists()
