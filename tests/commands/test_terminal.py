"""The terminal: the first lines, quiet and verbose, JSON of every command, plans, completion, narrow screens."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from genie_cli.app import app
from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.commands import display, opening
from genie_cli.commands import plan as plan_of_work
from genie_cli.runtime.progress import Advanced, Paced, StageStarted
from tests.commands.conftest import Genie

DIGITS = ("--model", "digits_resnet")
MAIN = "import sys; sys.argv[0] = 'genie'; from genie_cli.app import main; main()"
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_the_first_line_comes_before_torch() -> None:
    """What is on the terminal while torch is imported says so, and nothing of it is on standard output."""
    code = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch': print('HERE', file=sys.stderr)\n"
        "from genie_cli.app import main, tell_of_torch\n"
        "tell_of_torch()\n"
        "sys.meta_path.insert(1, Stop())\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", "digits_resnet", "--json"],
        capture_output=True, encoding="utf-8", timeout=120, check=True,
    )  # fmt: skip
    assert done.stderr.splitlines()[:2] == ["loading torch", "HERE"]
    assert "capturing digits_resnet" in done.stderr.splitlines()
    assert done.stderr.count("loading torch") == 1
    assert json.loads(done.stdout)["model"] == "digits_resnet"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_same_switches(command: str) -> None:
    options = {name for option in COMMANDS[command].params for name in option.opts}
    assert {"--json", "--quiet", "-q", "--verbose", "-v"} <= options


def test_quiet_and_verbose(genie: Genie, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_is_program", True)
    recipe = ("quantize", *DIGITS, "--preset", "minmax", "--images", images, "--batch-size", 32, "--out", "q")
    plain, quiet = genie(*recipe), genie(*recipe, "-q")
    assert quiet.stderr == "" and "capturing digits_resnet" in plain.stderr
    assert quiet.stdout.splitlines()[0] == plain.stdout.splitlines()[0]
    told = genie(*recipe, "--verbose").stderr
    assert "Note: genie " in told and "Note: batch_size = 32" in told and "capturing digits_resnet: " in told
    assert genie("models", "-q", "-v", code=2).stderr.startswith("Error: --quiet and --verbose are opposites")
    assert "Traceback" not in genie("verify", "none", code=3).stderr
    failed = genie("verify", "none", "-v", code=3).stderr
    assert "Traceback" in failed and failed.splitlines()[-1].startswith("Error: none does not exist")
    assert "Traceback" not in genie("verify", "none", code=3).stderr  # the level is that of one command


def test_warnings_are_told_when_quiet(genie: Genie, images: Path, other_teacher: list[str]) -> None:
    told = genie("quantize", *other_teacher, "--preset", "minmax", "--images", images, "--out", "q", "-q").stderr
    assert "Warning: the images were made for another teacher" in told and "Note: " not in told


def test_json_of_the_commands_that_write(genie: Genie) -> None:
    made = json.loads(
        genie("synthesize", *DIGITS, "--n", 4, "--num-steps", 2, "--out", "i.safetensors", "--json").stdout
    )
    assert made["shape"] == [4, 1, 16, 16] and made["num_bytes"] == Path("i.safetensors").stat().st_size
    recipe = ("quantize", *DIGITS, "--preset", "mse", "--images", "i.safetensors", "--out", "q", "--json")
    quantized = json.loads(genie(*recipe).stdout)
    assert quantized["num_bytes"] == sum(file.stat().st_size for file in Path("q").glob("*.safetensors"))
    assert quantized["images_sha256"] == made["sha256"]
    assert load_quantized(Path("q")).metadata.preset == quantized["preset"] == "mse"
    assert json.loads(genie("verify", "q", "--json").stdout)["whole"] is True
    shown = json.loads(genie("show", "i.safetensors", "--out", "g.png", "--num", 2, "--json").stdout)
    assert shown["shown"] == 2 and shown["out"] == "g.png" and Path("g.png").is_file()
    assert json.loads(genie("config", "quantize", "--preset", "brecq", "--json").stdout)["quantize"]["drop_prob"] == 0
    assert json.loads(genie("clean", ".", "--json").stdout) == []
    measured = ("evaluate", *DIGITS, "--data", "digits", "--num-images", 20, "--out", "m.json", "--json")
    figures = json.loads(genie(*measured).stdout)
    (row,) = json.loads(genie("report", "m.json", "--out", "r", "--json").stdout).values()
    assert row["top1"] == figures["top1"]


@pytest.mark.parametrize("stage", ["synthesize", "quantize", "dfq", "sensitivity", "evaluate", "export"])
def test_a_plan_writes_nothing(
    genie: Genie, images: Path, quantized: Path, stage: str, tree: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_of_work, "_WATCHED", 0.3)
    commands: dict[str, tuple[Any, ...]] = {
        "synthesize": ("synthesize", *DIGITS, "--n", 300, "--num-steps", 7, "--log", "l.csv"),
        "quantize": ("quantize", *DIGITS, "--images", images, "--num-steps", 10, "--performance", "p.json"),
        "dfq": ("quantize", *DIGITS, "--preset", "dfq"),
        "sensitivity": ("sensitivity", *DIGITS, "--images", images),
        "evaluate": ("evaluate", *DIGITS, "--quantized", quantized, "--data", "digits", "--out", "m.json"),
        "export": ("export", *DIGITS, "--quantized", quantized),
    }
    before = tree(Path.cwd(), Path(os.environ["TORCH_HOME"]).parent)
    plan = json.loads(genie(*commands[stage], "--dry-run", "--json").stdout)
    told = genie(*commands[stage], "--dry-run").stdout
    assert tree(Path.cwd(), Path(os.environ["TORCH_HOME"]).parent) == before
    assert plan["dry_run"] is True and told.startswith("Plan; nothing was written")
    written = {
        "synthesize": ["images.safetensors", "l.csv"], "quantize": ["quantized", "p.json"], "dfq": ["quantized"],
        "sensitivity": ["sensitivity.json"], "evaluate": ["m.json"], "export": ["model.onnx", "model.onnx.export.json"],
    }[stage]  # fmt: skip
    assert plan["would_write"] == written and all(name in told for name in written)
    if stage != "export":
        assert 0 < plan["estimated_seconds"][stage if stage != "dfq" else "quantize"] < 600
        assert re.search(r"time +about \d+ (second|minute)", told)
    if stage == "synthesize":
        assert (plan["batches"], plan["steps"]) == (3, 21)
        assert plan["disk_bytes"]["beside_output"] > plan["images_bytes"] > 300 * 256 * 2
    if stage == "quantize":
        genie(*commands[stage])
        size = sum(file.stat().st_size for file in Path("quantized").iterdir() if file.name != "details.json")
        assert size <= plan["folder_bytes"] < size + 2000
        assert plan["steps"] == 10 * plan["units"]


def test_a_plan_of_long_work_ends_after_its_first_steps(genie: Genie, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_of_work, "_WATCHED", 0.3)
    line = ("synthesize", *DIGITS, "--num-images", "16", "--num-steps", "1000000", "--dry-run", "--json")
    assert json.loads(genie(*line).stdout)["estimated_seconds"]["synthesize"] > 100


def test_a_plan_of_a_search_tells_the_time_of_the_search(genie: Genie, images: Path) -> None:
    line = ("quantize", *DIGITS, "--images", images, "--target-ratio", "0.2", "--num-steps", "10", "--out", "none")
    plan = json.loads(genie(*line, "--dry-run", "--json").stdout)
    assert list(plan["estimated_seconds"]) == ["sensitivity"] and not Path("none").exists()


def test_a_plan_refuses_what_the_run_would_refuse(genie: Genie) -> None:
    told = genie("quantize", *DIGITS, "--images", "none.safetensors", "--dry-run", code=3).stderr
    assert "none.safetensors does not exist" in told


def complete(words: str, heavy: str = "torch") -> tuple[list[str], bool]:
    """What bash offers for a line, and whether torch was imported for it."""
    code = f"import atexit, sys; atexit.register(lambda: print({heavy!r} in sys.modules, file=sys.stderr)); {MAIN}"
    number = len(words.split(" ")) - 1
    environment = {**os.environ, "_GENIE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(number)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    return done.stdout.split(), done.stderr.split()[-1] == "True"


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("genie syn", {"synthesize"}),
        ("genie synthesize --preset ge", {"genie", "genie-fast", "genie-tuned"}),
        ("genie quantize --preset ada", {"adaround", "adaquant"}),
        ("genie quantize --protocol h", {"hardware"}),
        ("genie quantize --unit ", {"layer", "block", "network"}),
        ("genie quantize --weight-grid s", {"symmetric"}),
        ("genie evaluate --metric s", {"segmentation"}),
        ("genie evaluate --model resnet1", {"resnet18", "resnet101", "resnet152"}),
        ("genie inspect --protocol ai", {"ait"}),
        ("genie quantize --model digits", {"digits_resnet"}),
        ("genie config sens", {"sensitivity"}),
    ],
)
def test_completion(line: str, some: set[str]) -> None:
    offered, has_torch = complete(line)
    beginning = line.rpartition(" ")[2]
    assert set(offered) == some and all(name.startswith(beginning) for name in offered)
    assert not has_torch


def test_completed_networks_are_those_of_the_zoo() -> None:
    from genie_cli.models.listed_names import listed_names
    from genie_cli.models.zoo import known_names

    assert [name for name in listed_names("") if name != "timm:"] == known_names()
    timm = pytest.importorskip("timm")
    assert {f"timm:{name}" for name in timm.list_models("resnet*")} <= set(listed_names("timm:"))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_bar_is_one_line_of_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage, count, rate and time are whole, whatever the place of the work is called."""
    file, clock = io.StringIO(), itertools.count()
    console = Console(file=file, width=width, force_terminal=True, force_interactive=True, color_system=None)
    monkeypatch.setattr(display, "Console", lambda **_: console)
    monkeypatch.setattr(display.time, "monotonic", lambda: float(next(clock)))
    with display.progress() as report:
        report(StageStarted("quantize", 420_000, "steps"))
        for done in (0, 123, 246, 123_456):
            report(Paced("quantize", done, done / 420_000))
            detail = "unit 13/21 features.denseblock3.denselayer12"
            report(Advanced("quantize", done, detail, {"loss": 0.0123456, "held-out": 0.0234567}))
    frames = [line.rstrip() for line in re.split(r"[\r\n]|\x1b\[2K", file.getvalue()) if "quantize" in line]
    assert frames and max(map(len, frames)) <= width
    assert re.search(r"^quantize .*123456/420000 .*/s \d+:\d\d:\d\d$", frames[-1]), frames[-1]
    assert file.getvalue().count("\x1b[1A") <= 1  # the last frame is erased; none takes two lines
