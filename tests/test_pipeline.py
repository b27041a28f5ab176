"""The root pipeline: what depends on what, shown by DVC itself without running a stage."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from genie_cli.config import QuantizeConfig

ROOT = Path(__file__).parent.parent
IMAGENET = [
    "model.name=resnet18",
    "synthesize.num_images=1024",
    "synthesize.num_steps=4000",
    "quantize.num_steps=20000",
    "quantize.rounding_lr=0.001",
    "evaluate.data=imagefolder:/data/imagenet/val",
]


def _load(name: str) -> dict:
    return YAML(typ="safe", pure=True).load((ROOT / name).read_text())


def _runs() -> list[str]:
    """Names of the root pipeline's quantized networks."""
    presets, schemes = _load("dvc.yaml")["vars"][0]["presets"], _load("params.yaml")["quantize"]["schemes"]
    return [f"{preset}-{scheme}" for preset in presets for scheme in schemes]


def _run(folder: Path, *command: str) -> str:
    environment = {
        **os.environ,
        "GIT_AUTHOR_NAME": "t",
        "GIT_AUTHOR_EMAIL": "t@t",
        "GIT_COMMITTER_NAME": "t",
        "GIT_COMMITTER_EMAIL": "t@t",
        "DVC_NO_ANALYTICS": "1",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _dvc(folder: Path, *arguments: str) -> str:
    return _run(folder, sys.executable, "-m", "dvc", *arguments)


def _pending(folder: Path) -> set[str]:
    """Names of the stages that `dvc repro` would run, downstream ones that wait for them left out."""
    import json

    return set(json.loads(_dvc(folder, "status", "--json").splitlines()[-1]))


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the project whose stages all count as run, on stand-in outputs."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "*.lock"))
    shutil.copytree(ROOT / "genie_cli", folder / "genie_cli", ignore=shutil.ignore_patterns("__pycache__"))
    outputs = folder / "outputs"
    for name in (
        "images.safetensors",
        "synthesis_loss.csv",
        "report/table.md",
        "report/table.json",
        "report/table.csv",
    ):
        (outputs / name).parent.mkdir(parents=True, exist_ok=True)
        (outputs / name).write_text(name)
    for run in _runs():
        (outputs / "quantized" / run).mkdir(parents=True)
        (outputs / "quantized" / run / "weights.safetensors").write_text(run)
        (outputs / "metrics").mkdir(exist_ok=True)
        (outputs / "metrics" / f"{run}.json").write_text('{"top1": 1.0}')
    (outputs / "performance").mkdir()
    for name in ("synthesize", *(f"quantize-{run}" for run in _runs())):
        (outputs / "performance" / f"{name}.json").write_text('{"seconds": 1.0}')
    _run(folder, "git", "init", "-q")
    _dvc(folder, "commit", "--force", "--quiet")
    _run(folder, "git", "add", "-A")
    _run(folder, "git", "commit", "-qm", "all")
    assert _pending(folder) == set()
    return folder


@pytest.fixture
def project(committed: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(committed, tmp_path / "project", symlinks=True))


def _edit(project: Path, old: str, new: str, name: str = "params.yaml") -> None:
    text = (project / name).read_text()
    assert old in text
    (project / name).write_text(text.replace(old, new, 1))


def test_every_quantize_key_of_the_params_file_is_tracked() -> None:
    params, stages = _load("params.yaml"), _load("dvc.yaml")["stages"]
    listed = {key for key in stages["quantize"]["params"] if key.startswith("quantize.")}
    shared = {f"quantize.{key}" for key in params["quantize"] if key != "schemes"}
    assert listed == shared | {"quantize.schemes.${item.scheme}"}
    assert set(params["quantize"]) - {"schemes"} <= set(QuantizeConfig.model_fields)


def test_changing_one_scheme_runs_only_that_scheme(project: Path) -> None:
    _edit(
        project,
        "w2a4:\n      weight_bits: 2\n      activation_bits: 4",
        "w2a4:\n      weight_bits: 2\n      activation_bits: 5",
    )
    assert _pending(project) == {"quantize@minmax-w2a4", "quantize@qdrop-w2a4", "quantize@genie-m-w2a4"}


def test_adding_a_preset_runs_only_the_new_one(project: Path) -> None:
    _edit(project, "genie-m]", "genie-m, brecq]", "dvc.yaml")
    new = {f"{stage}@brecq-{scheme}" for stage in ("quantize", "evaluate") for scheme in ("w4a4", "w2a4", "w2a2")}
    assert {stage for stage in _pending(project) if "@" in stage} == new


def test_adding_a_scheme_runs_only_the_new_one(project: Path) -> None:
    _edit(project, "  schemes:\n", "  schemes:\n    w8a8:\n      weight_bits: 8\n      activation_bits: 8\n")
    # the report depends on the folder of all metrics, which the new evaluation will change
    presets = ("minmax", "qdrop", "genie-m")
    new = {f"{stage}@{preset}-w8a8" for stage in ("quantize", "evaluate") for preset in presets}
    assert {stage for stage in _pending(project) if "@" in stage} == new


def test_changing_evaluation_code_runs_only_evaluation(project: Path) -> None:
    _edit(project, "import annotations", "import annotations\n", "genie_cli/evaluation/accuracy.py")
    assert {stage.partition("@")[0] for stage in _pending(project)} == {"evaluate"}


def test_changing_the_data_runs_only_evaluation(project: Path) -> None:
    _edit(project, "data: digits", "data: cifar10:/data")
    assert {stage.partition("@")[0] for stage in _pending(project)} == {"evaluate"}


def test_changing_the_budget_of_quantization_leaves_the_images(project: Path) -> None:
    _edit(project, "num_steps: 300", "num_steps: 301")
    assert _pending(project) == {f"quantize@{run}" for run in _runs()}


def test_the_imagenet_experiment_of_the_readme_is_a_dry_run(project: Path) -> None:
    settings = [word for setting in IMAGENET for word in ("-S", setting)]
    command = " ".join(["dvc exp run", *settings])
    assert command in (ROOT / "README.md").read_text()
    shown = _dvc(project, "exp", "run", "--dry", "--force", *settings)
    assert "python -m genie_cli synthesize --params params.yaml" in shown
    assert "--scheme w2a2 --images outputs/images.safetensors" in shown
    assert "python -m genie_cli report outputs/metrics" in shown
