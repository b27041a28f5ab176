"""Ctrl-C in real processes: what was done is kept and counted, and the same command ends in the same bytes."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from genie_cli.app import app
from genie_cli.work.folder import ROOT

SYNTHESIZE = ("synthesize", "--model", "digits_resnet", "--n", "4", "--batch-size", "2", "--precision", "fp32")
QUANTIZE = (
    "quantize", "--model", "digits_resnet", "--images", "digits", "--num-images", "12", "--batch-size", "4",
    "--precision", "fp32",
)  # fmt: skip
STEPS = 150
"""Long enough that a signal arrives before the last step of a part."""
SOURCES = str(Path(__file__).parent.parent)
_numbers = itertools.count()


class Genie:
    """A command in a process of its own."""

    def __init__(self, command: Sequence[str], **environment: str) -> None:
        self.log = Path(f"log{next(_numbers)}")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "genie_cli", *command],
                env={**os.environ, "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1", **environment},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def said(self) -> str:
        return self.log.read_text()


def interrupt_when(is_time: Callable[[], bool], *commands: Genie) -> list[str]:
    """Send Ctrl-C once it is time; returns what was said on standard error."""
    until = time.monotonic() + 200
    while not is_time() and time.monotonic() < until and all(each.process.poll() is None for each in commands):
        time.sleep(0.02)
    time.sleep(0.2)  # into the steps of the next part
    for each in commands:
        each.process.send_signal(signal.SIGINT)
    codes = [each.process.wait(200) for each in commands]
    said = [each.said() for each in commands]
    assert codes == [130] * len(commands), said
    return said


def is_finished(part: str) -> Callable[[], bool]:
    return lambda: any(Path(ROOT).glob(f"*/{part}.part"))


def kept_files() -> list[Path]:
    return list(Path(ROOT).glob("*/*.checkpoint*"))


def kept_steps() -> list[int]:
    """The steps of the checkpoints that are kept."""
    steps = []
    for file in kept_files():
        with safe_open(file, framework="pt") as opened:
            steps.append(json.loads(opened.metadata()["genie_work"])["facts"]["step"])
    return steps


def run(*command: str) -> str:
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 0, outcome.output
    return outcome.stderr


def assert_same(one: str, other: str) -> None:
    for file in ("weights.safetensors", "step_sizes.safetensors", "metrics.json"):
        assert (Path(one) / file).read_bytes() == (Path(other) / file).read_bytes()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The bytes depend on the number of threads, which is one in the processes that these tests start."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_synthesis_goes_on_from_the_step_of_the_interrupt() -> None:
    command = (*SYNTHESIZE, "--num-steps", str(STEPS))
    (said,) = interrupt_when(is_finished("batch0"), Genie((*command, "--out", "cut.safetensors")))
    assert re.search(r"Interrupted: 1 of 2 batches are kept; the same command goes on\. The steps inside", said), said
    assert not Path("cut.safetensors").exists()
    (step,) = kept_steps()
    assert 0 < step < STEPS
    assert "going on where an earlier run was" in run(*command, "--out", "cut.safetensors")
    run(*command, "--out", "whole.safetensors")
    assert Path("cut.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    assert not Path(ROOT).exists()


@pytest.mark.parametrize(
    ("more", "part", "noun"),
    [
        ((), "unit0", "units"),
        pytest.param(("--preset", "adaround", "--patience", "60"), "unit1.0", "layers", marks=pytest.mark.slow),
    ],
    ids=["units", "layers"],
)
def test_quantization_goes_on_from_the_step_of_the_interrupt(more: tuple[str, ...], part: str, noun: str) -> None:
    command = (*QUANTIZE, "--num-steps", str(STEPS), *more)
    (said,) = interrupt_when(is_finished(part), Genie((*command, "--out", "cut")))
    assert re.search(rf"Interrupted: \d of \d+ {noun} are kept; the same command goes on\.", said), said
    assert not Path("cut").exists()
    assert all(0 < step < STEPS for step in kept_steps())
    run(*command, "--out", "cut")
    run(*command, "--out", "whole")
    assert_same("cut", "whole")


@pytest.mark.slow
def test_an_evaluation_keeps_nothing() -> None:
    command = Genie(("evaluate", "--model", "digits_resnet", "--data", "digits", "--batch-size", "1"))
    (said,) = interrupt_when(lambda: "evaluate: 537 images" in command.said(), command)
    assert said.splitlines()[-1] == "Interrupted; nothing was written."


@pytest.mark.slow
def test_two_processes_end_at_one_step_and_go_on_together() -> None:
    command = (*QUANTIZE, "--num-steps", str(STEPS), "--unit", "network", "--checkpoint-interval", "0")

    def both(out: str) -> list[Genie]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
        return [
            Genie((*command, "--out", out), RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2", **place)
            for rank in (0, 1)
        ]

    processes = both("cut")
    said = interrupt_when(lambda: bool(kept_files()), *processes)
    assert "The steps inside of the next one are kept too" in said[0], said
    assert "Interrupted" not in said[1]
    steps = kept_steps()
    assert steps.count(max(steps)) == 2  # of two slots each
    for out in ("cut", "whole"):
        for each in both(out):
            assert each.process.wait(300) == 0, each.said()
    assert_same("cut", "whole")
