"""The command line in this process and in one of its own, and what its tests share."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from genie_cli.app import app

NETWORKS = '''
import torch
from torch import nn

from genie_cli.models.digits import digits_resnet


def other():
    """The digits network with weights of its own."""
    torch.manual_seed(5)
    return digits_resnet()


def color():
    """Three channels, three classes."""
    torch.manual_seed(6)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )


def squeeze():
    """No batch norm, as in SqueezeNet."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Branching(nn.Module):
    def forward(self, x):
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


def broken():
    raise RuntimeError("out of order")


def wordy():
    raise ValueError("no such thing:\\nit has\\ttwo lines")


def no_layers():
    return nn.Sequential(nn.BatchNorm2d(1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class NoOutputs(nn.Module):
    def forward(self, x):
        return {"largest": x.amax(), "stride": 8}


class Maps(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = Maps(), nn.Linear(4, 5)

    def forward(self, x):
        x = self.body(x)
        return {"map": x, "head": {"cls": self.fc(x.mean((2, 3)))}}


class Flat(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, 3))


class Detector(Maps):
    def forward(self, x):
        from torchvision.ops import nms

        found = []
        for rows in super().forward(x).flatten(2).transpose(1, 2):
            boxes = torch.cat([rows[:, :2], rows[:, :2] + 1 + rows[:, 2:4]], 1)
            found.append(boxes[nms(boxes, rows[:, 0], 0.5)])
        return found


def no_network():
    return 5


size = 5
'''
"""Users' own networks, for FILE.py:FACTORY."""
GRAY = ("--num-channels", "1", "--input-size", "16", "--mean", "0.3", "--std", "0.3")


@dataclass(frozen=True)
class Result:
    exit_code: int
    stdout: str
    stderr: str


Genie = Callable[..., Result]


def run_here(*args: object, code: int | None = 0) -> Result:
    """Run a command in this process and check its exit code (None: any)."""
    outcome = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="genie")
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    result = Result(outcome.exit_code, outcome.stdout, outcome.stderr)
    assert code is None or result.exit_code == code, result
    return result


def run_apart(*args: object, code: int | None = 0, cwd: Path | None = None, **environment: str) -> Result:
    """Run ``python -m genie_cli`` and check its exit code (None: any)."""
    done = subprocess.run(
        [sys.executable, "-m", "genie_cli", *map(str, args)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    result = Result(done.returncode, done.stdout, done.stderr)
    assert code is None or result.exit_code == code, result
    return result


@pytest.fixture(autouse=True)
def in_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has an empty working folder; downloaded weights would go to another one."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    yield


@pytest.fixture
def genie() -> Genie:
    """The command line in this process: fast."""
    return run_here


@pytest.fixture
def genie_process() -> Genie:
    """The command line in a process of its own."""
    return run_apart


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images made for the digits network."""
    path = tmp_path_factory.mktemp("images") / "images.safetensors"
    run_here("synthesize", "--model", "digits_resnet", "--n", 8, "--num-steps", 2, "--out", path)
    return path


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """The digits network at w4a4."""
    path = tmp_path_factory.mktemp("quantized") / "quantized"
    run_here("quantize", "--model", "digits_resnet", "--preset", "minmax", "--images", images, "--out", path)
    return path


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of users' own networks."""
    path = tmp_path_factory.mktemp("networks") / "networks.py"
    path.write_text(NETWORKS)
    return path


@pytest.fixture
def other_teacher(networks: Path) -> list[str]:
    """Options that name a network of the digits network's shape and other weights."""
    return ["--model", f"{networks}:other", *GRAY]


@pytest.fixture
def tree() -> Callable[..., dict[str, str]]:
    """A listing of folders: path in its folder -> what it is, a link's target, a file's size, time and hash."""

    def describe(path: Path) -> str:
        if path.is_symlink():
            return f"link to {path.readlink()}"
        if not path.is_file():
            return "folder" if path.is_dir() else "something else"
        about = path.stat()
        return f"{about.st_size} bytes of {about.st_mtime_ns}, {hashlib.sha256(path.read_bytes()).hexdigest()}"

    def walk(*folders: Path) -> dict[str, str]:
        return {
            f"{number}/{path.relative_to(folder)}": describe(path)
            for number, folder in enumerate(folders)
            for path in sorted(folder.rglob("*"))
        }

    return walk
