"""A disk that fills at any moment of a command: one message, nothing half written, and the same bytes later."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genie_cli.commands.display import note, progress
from genie_cli.runtime.progress import StageFinished, StageStarted
from genie_cli.work.folder import ROOT

SYNTHESIZE = (
    *("synthesize", "--model", "digits_resnet", "--n", 8, "--batch-size", 4, "--num-steps", 2),
    *("--log", "log.csv", "--performance", "performance.json", "--out", "out"),
)
QUANTIZE = (
    *("quantize", "--model", "digits_resnet", "--num-steps", 1, "--batch-size", 2, "--unit", "network"),
    *("--performance", "performance.json", "--out", "out"),
)
MEASURED_ANEW = "performance.json"


class Disk:
    """Full from one write on; writes are counted by what makes each of them last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes, self.room = 0, 1 << 30
        real = os.fsync

        def fsync(descriptor: int) -> None:
            if os.fstat(descriptor).st_mode & 0o40000:  # a folder
                return real(descriptor)
            self.writes += 1
            if self.writes > self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fsync)

    def has_room_for(self, writes: int) -> None:
        self.writes, self.room = 0, writes


def content(folder: Path) -> dict[str, bytes]:
    """What is written but for the times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MEASURED_ANEW)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("command", ["synthesize", "quantize"])
def test_full_at_any_write(command: str, genie: Any, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    arguments = SYNTHESIZE if command == "synthesize" else (*QUANTIZE, "--images", images)
    disk = Disk(monkeypatch)
    genie(*arguments)
    num_writes, whole = disk.writes, content(Path())
    assert num_writes >= 8
    genie(*arguments, "--seed", 1)
    old = content(Path())
    messages = []
    for room in (2, num_writes // 2 + 1, num_writes - 1):
        for name, older in old.items():
            Path(name).write_bytes(older)
        disk.has_room_for(room)
        failed = genie(*arguments, code=3)
        errors = [line for line in failed.stderr.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1 and "No space left on device" in errors[0] and "free some space" in errors[0]
        messages.append(errors[0])
        now = content(Path())
        assert {name for name in now if not name.startswith(ROOT)} == set(old)  # no temporary files
        assert all(now[name] in (old[name], whole[name]) for name in old)
        disk.has_room_for(1 << 30)
        genie(*arguments)
        assert content(Path()) == whole
    assert "goes on from there" in messages[-1] and "goes on from there" not in messages[0]


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_full_when_figures_are_written(command: str, genie: Any, quantized: Path, monkeypatch: pytest.MonkeyPatch):
    evaluate = ("evaluate", "--model", "digits_resnet", "--data", "digits", "--num-images", 20)
    genie(*evaluate, "--out", "metrics.json")
    arguments = (*evaluate, "--out", "new.json") if command == "evaluate" else ("report", "metrics.json")
    Disk(monkeypatch).has_room_for(int(command == "evaluate"))
    failed = genie(*arguments, code=3)
    assert "free some space" in failed.stderr and "Traceback" not in failed.stderr
    assert not Path("new.json").exists() and not list(Path().rglob(".genie-*"))


@pytest.mark.parametrize("command", ["synthesize", "quantize"])
def test_too_little_room_is_refused_before_the_work(
    command: str, genie: Any, images: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil._ntuple_diskusage(1 << 40, 0, 100_000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    arguments = SYNTHESIZE if command == "synthesize" else (*QUANTIZE, "--images", images)
    refused = genie(*arguments, code=3)
    (error,) = (line for line in refused.stderr.splitlines() if line.startswith("Error: "))
    assert str(Path.cwd()) in error and "97.66 KiB of free space" in error and "another disk" in error
    assert not list(Path().iterdir())
    assert f"{command}: " not in refused.stderr  # no step was taken


def test_standard_output_on_a_full_disk():
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    command = [sys.executable, "-m", "genie_cli", "--version"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, encoding="utf-8", timeout=60, check=False)
    assert done.returncode == 3
    assert done.stderr == "Error: The standard output cannot be written: No space left on device.\n"


@pytest.mark.slow
def test_limit_on_the_size_of_files(genie: Any, tmp_path: Path):
    """A real one: no checkpoint and no output fits, each batch does."""
    resource = pytest.importorskip("resource")
    arguments = [
        *("synthesize", "--model", "digits_resnet", "--n", "40", "--batch-size", "10", "--num-steps", "2"),
        *("--checkpoint-interval", "0"),
    ]
    limit = 16 << 10
    failed = subprocess.run(
        [sys.executable, "-m", "genie_cli", *arguments, "--out", "out"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert failed.returncode == 3, failed.stderr
    assert failed.stderr.count("Warning: a checkpoint could not be kept") == 1
    assert failed.stderr.count("Error: ") == 1 and "ulimit -f" in failed.stderr and "Traceback" not in failed.stderr
    assert "What is finished is kept" in failed.stderr
    assert [path.name for path in Path().iterdir()] == [ROOT]
    assert "4 part(s) done" in genie(*arguments, "--out", "out").stderr
    genie(*arguments, "--out", "whole")
    assert Path("out").read_bytes() == Path("whole").read_bytes()
    assert sorted(path.name for path in Path().iterdir()) == ["out", "whole"]


def test_progress_on_a_full_disk_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch):
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("genie_cli.commands.display.Console.print", full)
    with progress() as report:
        report(StageStarted("synthesize", 2))
        report(StageFinished("synthesize"))
    note("something")
