"""``genie evaluate`` by two processes: the figures of one, and what happens when something is wrong in one alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

INPUT, OTHER_ENDED = 3, 5
EVALUATE = ("evaluate", "--model", "digits_resnet", "--data")
COMMANDS = {
    "several batches": (*EVALUATE, "digits", "--batch-size", "100", "--json"),
    "wrong in the second": (
        "evaluate", "--model", "networks.py:wrong_in_the_second", "--data", "digits",
        "--num-channels", "1", "--input-size", "16", "--mean", "0.3", "--std", "0.3",
    ),
    "image of the second": (*EVALUATE, "imagefolder:pictures", "--batch-size", "10", "--num-workers", "1"),
}  # fmt: skip
"""The last one ends in one process alone, which the other must notice."""
NETWORKS = """
import os
from genie_cli.models.digits import digits_resnet


def wrong_in_the_second():
    if os.environ["RANK"] == "1":
        raise RuntimeError("out of order")
    return digits_resnet()
"""
ALL = """
import contextlib, io, json, os
from genie_cli.app import app
from tests.support.captures import capture_digits_once

capture_digits_once()
rank, outcomes = os.environ["RANK"], {}
for name, (arguments, port) in json.load(open("commands.json")).items():
    os.environ["MASTER_PORT"] = port
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app([*arguments, "--device", "cpu", "--out", f"{name}.json"], prog_name="genie")
        except SystemExit as end:
            code = end.code
    outcomes[name] = code, out.getvalue(), err.getvalue()
    json.dump(outcomes, open(f"outcomes{rank}.json", "w"))
"""
"""Runs the commands one after the other, as starting a process takes seconds."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have run all commands, without a torchrun that ends one because of the other."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "networks.py").write_text(NETWORKS)
    (folder / "all.py").write_text(ALL)
    for number in range(20):  # the second batch begins with class 5
        path = folder / "pictures" / str(number // 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(path)
    (folder / "pictures" / "5" / "10.png").write_bytes(b"no picture")
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in COMMANDS]
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    (folder / "commands.json").write_text(
        json.dumps(dict(zip(COMMANDS, zip(COMMANDS.values(), ports, strict=True), strict=True)))
    )
    places = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "all.py"],
            cwd=folder,
            env={**os.environ, **places, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return folder


@pytest.fixture
def outcome(folder: Path) -> Callable[[str, int], list[Any]]:
    """Exit code, stdout and stderr of a command in a process."""
    outcomes = [json.loads((folder / f"outcomes{rank}.json").read_text()) for rank in (0, 1)]
    return lambda name, rank: outcomes[rank][name]


def errors(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if not line.startswith("evaluate: ")]


def test_figures_of_several_batches_are_those_of_one_process(outcome: Any, folder: Path, genie: Any) -> None:
    """Three batches for each process, the last of them with fewer images."""
    code, stdout, stderr = outcome("several batches", 0)
    assert code == 0, stderr
    assert stdout == genie(*COMMANDS["several batches"], "--out", "one.json").stdout
    assert (folder / "several batches.json").read_bytes() == Path("one.json").read_bytes()
    assert stderr.count("evaluate: 537 images\n") == stderr.count("evaluate: done in") == 1
    assert "Warning" not in stderr
    assert outcome("several batches", 1) == [0, "", ""]


def test_what_is_wrong_in_the_second_alone_is_said_by_the_first(outcome: Any) -> None:
    code, stdout, stderr = outcome("wrong in the second", 0)
    assert (code, stdout) == (INPUT, "")
    (line,) = errors(stderr)
    assert line.startswith("Error: Process 1: ")
    assert "RuntimeError: out of order" in line
    assert outcome("wrong in the second", 1) == [INPUT, "", ""]


def test_image_that_the_second_cannot_read(outcome: Any) -> None:
    code, stdout, stderr = outcome("image of the second", 1)
    assert (code, stdout) == (INPUT, "")
    (line,) = errors(stderr)
    assert line.startswith("Error in process 1: Image pictures/5/10.png cannot be read")
    code, stdout, stderr = outcome("image of the second", 0)
    assert (code, stdout) == (OTHER_ENDED, "")
    (line,) = errors(stderr)
    assert line.startswith("Error: Another process of this run has ended")


def test_runs_that_failed_left_no_output(folder: Path) -> None:
    made = {path.name for path in folder.iterdir()} - {"__pycache__"}
    made.remove("several batches.json")
    assert made == {"all.py", "commands.json", "networks.py", "outcomes0.json", "outcomes1.json", "pictures"}
