"""The pipelines: what depends on what, shown by DVC itself without running a stage."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest
import typer
from dvc.repo import Repo
from dvc.stage import PipelineStage
from ruamel.yaml import YAML
from typer.testing import CliRunner

from genie_cli.app import app
from genie_cli.config import QuantizeConfig

ROOT = Path(__file__).parents[2]
EACH = ("quantize", "evaluate", "export")
"""Stages that run for each preset and scheme."""
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
    presets, schemes = _load("dvc.yaml")["vars"][0]["runs"]["presets"], _load("params.yaml")["quantize"]["schemes"]
    return [f"{preset}-{scheme}" for preset in presets for scheme in schemes]


def _git(folder: Path, *arguments: str) -> None:
    names = {f"GIT_{role}_{key}": "t" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    subprocess.run(["git", *arguments], cwd=folder, env={**os.environ, **names}, capture_output=True, check=True)


def _dvc(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def _repo(folder: Path) -> Iterator[Repo]:
    """DVC's own view of a folder; starting its command line takes longer than most that it is asked."""
    with chdir(folder), Repo() as repo:
        yield repo


def _pending(folder: Path, *targets: str) -> set[str]:
    """Names of the stages that `dvc repro` would run, downstream ones that wait for them left out."""
    with _repo(folder) as repo:
        return set(repo.status(targets=list(targets) or None))


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
        "report/figures.json",
        "report/table.md",
        "report/table.json",
        "report/table.csv",
        "report.html",
        *(f"reconstruction/{run}.csv" for run in _runs()),
    ):
        (outputs / name).parent.mkdir(parents=True, exist_ok=True)
        (outputs / name).write_text("{}" if name.endswith("figures.json") else name)
    for run in _runs():
        (outputs / "quantized" / run).mkdir(parents=True)
        (outputs / "quantized" / run / "weights.safetensors").write_text(run)
        (outputs / "metrics").mkdir(exist_ok=True)
        (outputs / "metrics" / f"{run}.json").write_text('{"top1": 1.0}')
        (outputs / "exported").mkdir(exist_ok=True)
        (outputs / "exported" / f"{run}.onnx").write_text(run)
        (outputs / "exported" / f"{run}.onnx.export.json").write_text('{"agreement": 1.0}')
    (outputs / "performance").mkdir()
    for name in ("synthesize", *(f"quantize-{run}" for run in _runs())):
        (outputs / "performance" / f"{name}.json").write_text('{"seconds": 1.0}')
    _git(folder, "init", "-q")
    with _repo(folder) as repo:
        repo.commit(force=True)
    _git(folder, "add", "-A")
    _git(folder, "commit", "-qm", "all")
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
    runs = {f"quantize@{preset}-w2a4" for preset in ("minmax", "qdrop", "genie-m")}
    assert _pending(project) == runs | {"report", "page"}  # these depend on the list of schemes, and on the runs anyway


def test_adding_a_preset_runs_only_the_new_one(project: Path) -> None:
    _edit(project, "genie-m]", "genie-m, brecq]", "dvc.yaml")
    new = {f"{stage}@brecq-{scheme}" for stage in EACH for scheme in ("w4a4", "w2a4", "w2a2")}
    assert {stage for stage in _pending(project) if "@" in stage} == new


def test_adding_a_scheme_runs_only_the_new_one(project: Path) -> None:
    _edit(project, "  schemes:\n", "  schemes:\n    w8a8:\n      weight_bits: 8\n      activation_bits: 8\n")
    # the report depends on the folder of all metrics, which the new evaluation will change
    presets = ("minmax", "qdrop", "genie-m")
    new = {f"{stage}@{preset}-w8a8" for stage in EACH for preset in presets}
    assert {stage for stage in _pending(project) if "@" in stage} == new


@pytest.mark.parametrize(
    ("name", "old"),
    [("params.yaml", "    w2a2:\n      weight_bits: 2\n      activation_bits: 2\n"), ("dvc.yaml", "qdrop, ")],
)
def test_without_a_scheme_or_a_preset_the_reports_run_again(project: Path, name: str, old: str) -> None:
    """DVC keeps the files of stages that are gone, and the folders of the outputs are what they were."""
    _edit(project, old, "", name)
    assert _pending(project, "dvc.yaml") == {"report", "page"}


@pytest.mark.parametrize("experiment", ["ablation", "all-layers", "few-shot", "mixed", "num-images", "zero-shot"])
def test_reports_of_experiments_track_what_their_matrix_is_made_of(experiment: str) -> None:
    stages = _load(f"pipelines/{experiment}/dvc.yaml")["stages"]
    matrix = [value.strip("${}") for value in stages["evaluate"]["matrix"].values()]
    for stage in (stages[name] for name in ("report", "curve") if name in stages):
        assert {key for file in stage["params"] for keys in file.values() for key in keys} == set(matrix)
        command = stage["cmd"] if isinstance(stage["cmd"], str) else stage["cmd"][-1]
        assert f" --pipeline pipelines/{experiment}/dvc.yaml " in command


def test_changing_evaluation_code_runs_only_evaluation(project: Path) -> None:
    _edit(project, "import annotations", "import annotations\n", "genie_cli/evaluation/evaluate.py")
    assert {stage.partition("@")[0] for stage in _pending(project)} == {"evaluate"}


def test_changing_the_export_runs_only_the_export(project: Path) -> None:
    _edit(project, "storage: int8", "storage: packed")
    assert {stage.partition("@")[0] for stage in _pending(project)} == {"export"}


def test_changing_the_data_runs_only_evaluation(project: Path) -> None:
    _edit(project, "data: digits", "data: cifar10:/data")
    assert {stage.partition("@")[0] for stage in _pending(project)} == {"evaluate"}


def test_changing_the_budget_of_quantization_leaves_the_images(project: Path) -> None:
    _edit(project, "num_steps: 300", "num_steps: 301")
    assert _pending(project) == {f"quantize@{run}" for run in _runs()}


@pytest.mark.slow
def test_the_imagenet_experiment_of_the_page_is_a_dry_run(project: Path) -> None:
    settings = [word for setting in IMAGENET for word in ("-S", setting)]
    command = " ".join(["dvc exp run", *settings])
    assert command in (ROOT / "docs" / "compare.md").read_text()
    shown = _dvc(project, "exp", "run", "--dry", "--force", *settings)
    assert "python -m genie_cli synthesize --params params.yaml" in shown
    assert "--scheme w2a2 --images outputs/images.safetensors" in shown
    assert "python -m genie_cli report outputs/metrics" in shown


# --- the paper's experiments

EXPERIMENTS = ("images", "ablation", "zero-shot", "all-layers", "few-shot", "num-images", "mixed", "time")
PROFILES = ("kit", "imagenet")
SETTINGS = {  # Table 2, and genie's own presets
    "m1": ("zeroq", "qdrop"),
    "m2": ("zeroq", "genie-m"),
    "m3": ("swing", "qdrop"),
    "m4": ("gba", "qdrop"),
    "m5": ("latent", "qdrop"),
    "m6": ("genie", "qdrop"),
    "m7": ("genie", "genie-m"),
    "t1": ("zeroq", "genie-tuned"),
    "t2": ("genie-tuned", "genie-m"),
    "t3": ("genie-tuned", "genie-tuned"),
}


def _stages(folder: Path) -> dict[str, PipelineStage]:
    """All stages by folder and name; reading them checks that no two own one output."""
    with _repo(folder) as repo:
        repo.index.check_graph()
        return {f"{stage.path_in_repo}:{stage.name}": stage for stage in repo.index.stages}


def _commands(stage: PipelineStage) -> list[str]:
    return [stage.cmd] if isinstance(stage.cmd, str) else list(stage.cmd)


def _paths(edges: list) -> set[str]:
    return {str(edge.def_path) for edge in edges}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipelines in a repository of their own, without data and without results."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    ignored = shutil.ignore_patterns("cache", "tmp", "*.lock", "outputs")
    for name in (".dvc", "pipelines"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    _git(folder, "init", "-q")
    return folder


@pytest.fixture(scope="module", params=PROFILES)
def profile(checkout: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A copy whose one line `active` names the profile."""
    folder = tmp_path_factory.mktemp("profile") / request.param
    shutil.copytree(checkout, folder)
    _edit(folder, "active: *kit", f"active: *{request.param}", "pipelines/params.yaml")
    return folder


@pytest.fixture(scope="module")
def stages(profile: Path) -> dict[str, PipelineStage]:
    return _stages(profile)


@pytest.fixture
def only_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage commands do all but the work: their options become a configuration."""
    for name in ("synthesize", "quantize", "evaluate", "export"):
        monkeypatch.setattr(importlib.import_module(f"genie_cli.commands.{name}"), "_run", lambda *_: None)


def test_each_experiment_is_a_pipeline(stages: dict[str, PipelineStage], profile: Path) -> None:
    found = {Path(stage.path_in_repo).parent.name for stage in stages.values()}
    assert found == {"", *EXPERIMENTS}
    assert {folder.parent.name for folder in (ROOT / "pipelines").glob("*/dvc.yaml")} == set(EXPERIMENTS)
    outputs = [path for stage in stages.values() for path in _paths(stage.outs) if path.startswith("pipelines/")]
    assert all(re.match(rf"pipelines/[a-z-]+/outputs/{profile.name}/", path) for path in outputs)
    assert not list((ROOT / "pipelines").rglob("*.py"))


def test_the_command_line_takes_every_command(stages: dict[str, PipelineStage], only_configured: None) -> None:
    """Of commands that differ in seed, files or, but for one command, in the network, one is run."""
    commands: dict[str, str] = {}
    for command in (command for stage in stages.values() for command in _commands(stage)):
        kind = re.sub(r"--seed \d+|\S+/outputs/\S+", "", command)
        kind = kind if " synthesize " in kind else re.sub(r"--model \S+ --weights \S+", "", kind)
        commands.setdefault(kind, command)
    parser = typer.main.get_command(app)
    seen: Counter[str] = Counter()
    for command in commands.values():
        words = shlex.split(command)
        if words[:3] != ["python", "-m", "genie_cli"]:
            assert words[0] in ("mkdir", "cp", ":") or words[:3] == ["python", "-m", "dvc"], command
            continue
        seen[words[3]] += 1
        if words[3] == "report":
            parser.commands["report"].make_context("report", words[4:])
            continue
        outcome = CliRunner().invoke(app, words[3:])
        assert outcome.exit_code == 0, (command, outcome.output, outcome.exception)
    assert seen.keys() == {"synthesize", "quantize", "evaluate", "export", "report"}
    assert seen["quantize"] > 40


def test_experiments_read_image_sets_that_exist(stages: dict[str, PipelineStage]) -> None:
    sets = {
        path: name
        for name, stage in stages.items()
        if stage.path_in_repo == "pipelines/images/dvc.yaml"
        for path in _paths(stage.outs)
    }
    read: dict[str, set[str]] = {}
    for stage in stages.values():
        images = {path for path in _paths(stage.deps) if path.startswith("pipelines/images/")}
        assert images <= sets.keys()
        read.setdefault(Path(stage.path_in_repo).parent.name, set()).update(sets[path] for path in images)
    assert {name for name, images in read.items() if images} == {
        "ablation", "zero-shot", "all-layers", "num-images", "mixed", "time"
    }  # fmt: skip
    assert set.union(*read.values()) == set(sets.values())  # no set is made for nothing


def test_the_ablation_has_the_settings_of_table_2(stages: dict[str, PipelineStage], profile: Path) -> None:
    listed = _load("pipelines/ablation/params.yaml")["settings"]
    assert {row["name"]: (row["synthesizer"], row["quantizer"]) for row in listed} == SETTINGS
    params = _load("pipelines/params.yaml")[profile.name]
    ablation = [name for name in stages if name.startswith("pipelines/ablation/dvc.yaml:quantize@")]
    runs = len(params["models"]) * len(params["ablation"]["num_steps"]) * len(params["ablation"]["schemes"])
    assert len(ablation) == len(SETTINGS) * runs * len(params["seeds"])
    for name in ablation:
        stage = stages[name]
        (images,) = (path for path in _paths(stage.deps) if path.startswith("pipelines/images/"))
        (folder,) = (path for path in _paths(stage.outs) if "/quantized/" in path)
        synthesizer, quantizer = SETTINGS[next(part for part in folder.split("-") if part in SETTINGS)]
        assert f"-{synthesizer}-n" in images
        assert f" --preset {quantizer} " in _commands(stage)[1]


def test_one_experiment_makes_only_its_own_image_sets(checkout: Path) -> None:
    with _repo(checkout) as repo:
        run = repo.reproduce("pipelines/ablation/dvc.yaml", dry=True, force=True)
    assert Counter(stage.addressing.removeprefix("pipelines/").partition("@")[0] for stage in run) == {
        "images/dvc.yaml:ablation": 18,
        "ablation/dvc.yaml:quantize": 60,
        "ablation/dvc.yaml:evaluate": 60,
        "ablation/dvc.yaml:report": 1,
    }


def test_another_seed_is_only_more_stages(checkout: Path, tmp_path: Path) -> None:
    before = _stages(checkout)
    folder = Path(shutil.copytree(checkout, tmp_path / "checkout"))
    _edit(folder, "seeds: [0, 1, 2]", "seeds: [0, 1, 2, 3]", "pipelines/params.yaml")
    after = _stages(folder)
    assert {name.rpartition("-")[2] for name in after.keys() - before.keys()} == {"3"}
    for name, stage in before.items():
        same = after[name]
        assert (stage.cmd, _paths(stage.deps), _paths(stage.outs)) == (same.cmd, _paths(same.deps), _paths(same.outs))


def test_the_demo_does_not_mind_missing_data(checkout: Path) -> None:
    pending = _pending(checkout, "dvc.yaml")
    stages = {"synthesize", "quantize", "evaluate", "export", "report", "page"}
    assert {name.partition("@")[0] for name in pending} == stages
