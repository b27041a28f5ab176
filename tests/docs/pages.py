"""The commands of a page of the documentation, run as they are typed there, one after the other in one folder.

- ``python3 -m venv``, ``source`` and ``pip install .`` run in a shell, on a copy of the sources. pip takes no
  dependencies from an index: those are what the tests run on. `.ci/wheel` installs with all of them.
- ``genie`` runs in this process, ``torchrun`` and what downloads weights in a shell with the environment that was
  installed; budgets are those of `tests.support.short_budgets`.
- Downloaded weights lie in the caches of torchvision and of the hub already: random ones.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from genie_cli.app import app

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
OWN_NETWORK = """
from torch import nn


def build():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )
"""


def blocks_of(page: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block of a page, in their order."""
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def commands_of(page: str) -> list[str]:
    """The lines of the page's blocks of ``bash``."""
    return [line for language, text in blocks_of(page) if language == "bash" for line in text.splitlines()]


def run_page(page: str, folder: Path) -> list[str]:
    """Run all blocks of ``bash`` and ``python`` of a page in `folder`, the working folder.

    Returns:
        the command lines that were run.
    """
    namespace: dict[str, Any] = {}
    done = []
    for language, text in blocks_of(page):
        if language == "python":
            exec(compile(text, page, "exec"), namespace)
        elif language == "bash":
            for line in text.splitlines():
                _run(line, folder)
                done.append(line)
    return done


def _run(line: str, folder: Path) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "genie" and not any(word.startswith("timm:") for word in words):
        outcome = CliRunner().invoke(app, words[1:], prog_name="genie")
        if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
            raise outcome.exception
        assert outcome.exit_code == 0, f"{line}\n{outcome.output}"
        return
    activate = "source .venv/bin/activate\n" if (folder / ".venv").is_dir() else ""
    short = words[0] in ("genie", "torchrun")
    paths = [*([str(folder / "short")] if short else []), str(ROOT), sysconfig.get_paths()["purelib"]]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths if words[0] != "pip" else paths[-1:]),
        "PATH": os.pathsep.join([os.environ["PATH"], str(Path(sys.executable).parent)]),
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip turns the meaning of this one around
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        ["bash", "-c", activate + line], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert "does not provide the extra" not in done.stderr, done.stderr


def prepare(folder: Path, caches: Path) -> None:
    """What the pages take for granted: the sources, a network of the user's, images, and downloaded weights.

    Args:
        folder: the working folder.
        caches: the folder of ``TORCH_HOME`` and ``HF_HOME``.
    """
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "genie_cli", folder / "genie_cli", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "short").mkdir()
    (folder / "short" / "sitecustomize.py").write_text("from tests.support.short_budgets import shorten\nshorten()\n")
    torch.manual_seed(0)
    (folder / "my_net.py").write_text(OWN_NETWORK)
    namespace: dict[str, Any] = {}
    exec(OWN_NETWORK, namespace)
    save_file(namespace["build"]().state_dict(), folder / "my_net.safetensors")
    pixels = torch.randint(256, (4, 3, 224, 224), dtype=torch.uint8)
    save_file({"images": pixels}, folder / "pixels.safetensors")
    for split in ("train", "val"):
        for number in range(1000):  # a folder for each of ImageNet's classes
            path = folder / "imagenet" / split / f"n{number:08}" / "0.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (32, 24), (number % 256, number // 4, 128)).save(path)
    _resnet18(caches)
    _timm(caches)


def _resnet18(caches: Path) -> None:
    from torchvision.models import ResNet18_Weights, resnet18

    path = caches / "hub" / "checkpoints" / Path(ResNet18_Weights.IMAGENET1K_V1.url).name
    path.parent.mkdir(parents=True)
    torch.save(resnet18().state_dict(), path)


def _timm(caches: Path) -> None:
    import timm

    name = "mobilenetv3_small_050"
    repository = caches / "hub" / f"models--timm--{name}.{timm.get_pretrained_cfg(name).tag}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(timm.create_model(name).state_dict(), repository / "snapshots" / ("0" * 40) / "model.safetensors")
