"""The three commands by two processes: the same files as by one, one voice, and no process left waiting."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

USAGE, INPUT, OTHER_ENDED = 2, 3, 5
DIGITS = ("--model", "digits_resnet", "--device", "cpu")
SYNTHESIZE = ("synthesize", *DIGITS, "--n", "72", "--batch-size", "24", "--num-steps", "15")
RANGES = ("--set", "weight_range=minmax", "--set", "activation_range=minmax")
W4A4 = ("quantize", *DIGITS, "--images", "images.safetensors", "--num-steps", "60", *RANGES)
FEW = ("quantize", *DIGITS, "--images", "images.safetensors", "--num-steps", "8", *RANGES)
EVALUATE = ("evaluate", *DIGITS, "--data", "digits")
COMMANDS: dict[str, tuple[str, ...]] = {
    "one batch": ("synthesize", *DIGITS, "--n", "4", "--num-steps", "2", "--out", "batch.safetensors"),
    "quantize": (*W4A4, "--performance", "performance.json"),
    "cut": (*W4A4, "--out", "resumed", "--checkpoint-interval", "0"),
    "resumed": (*W4A4, "--out", "resumed", "--checkpoint-interval", "0"),
    "evaluate": (*EVALUATE, "--quantized", "quantized", "--json", "--out", "metrics.json"),
    "one image": (*EVALUATE, "--num-images", "1", "--json"),
    # 5 and 4 images: an eighth is one image of the first process and none of the second
    "uneven": (*FEW, "--num-images", "9", "--patience", "2", "--out", "uneven"),
    "ranges": (*FEW, "--preset", "minmax", "--out", "minmax"),
    "tuned": (*FEW, "--preset", "genie-tuned", "--out", "tuned"),
    "closed form": (*FEW, "--preset", "closed-form", "--out", "closed"),
    "missing images": ("quantize", *DIGITS, "--images", "none.safetensors", "--out", "wrong"),
    "unknown protocol": (*FEW, "--protocol", "gennie", "--out", "wrong"),
    "unknown option": (*FEW, "--protocole", "genie", "--out", "wrong"),
    "missing params": (*FEW, "--params", "none.yaml", "--out", "wrong"),
    "small limit": (*FEW, "--memory-limit", "5", "--out", "wrong"),
    "missing folder": (*FEW, "--out", "none/wrong"),
    "too few images": (*FEW, "--batch-size", "1", "--out", "wrong"),
    "no gpu": (*FEW, "--device", "cuda:77", "--out", "wrong"),
    "loss": (*EVALUATE, "--out", "lost.json"),
}
MANY = """
import contextlib, io, json, os, sys
import torch
from genie_cli.app import app
from genie_cli.models.graph.tensors import named_tensors
from genie_cli.work.folder import WorkFolder
from tests.support import stages
from tests.support.captures import capture_digits_once

capture_digits_once()
rank = os.environ["RANK"]
save, find, saved, found = WorkFolder.save_checkpoint, WorkFolder.checkpoint, [], {}


def record(network):
    codes = {f"{name}.{key}": value for name, weight in network.weights.items()
             for key, value in weight.state_dict().items()}
    codes |= {name: value.detach() for name, value in named_tensors(network.plan.folded.graph).items()}
    steps = {name: (float(site.step_size), site.format.signed) for name, site in network.activations.items()}
    reports = [(unit.num_steps, unit.relative_error, unit.held_out_error) for unit in network.units]
    torch.save((codes, steps, reports), f"network{rank}-{number}.pt")


def saved_or_cut(self, part, *args):
    save(self, part, *args)
    saved.append(part)
    if (name, rank, len(saved)) == ("cut", "1", 3):
        sys.exit(9)


def find_and_tell(self, part, *args):
    checkpoint = find(self, part, *args)
    if checkpoint is not None:
        found[part] = checkpoint.facts["step"]
        json.dump(found, open(f"found{rank}.json", "w"))
    return checkpoint


WorkFolder.save_checkpoint, WorkFolder.checkpoint = saved_or_cut, find_and_tell
stages.listen_to_quantization(record)
results = {}
for number, (name, arguments, port) in enumerate(json.load(open("commands.json"))):
    os.environ["MASTER_PORT"] = port
    if name == "loss" and rank == "1":
        stages.replace_evaluation(lambda *args, **options: os._exit(9))
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app(arguments, prog_name="genie")
        except SystemExit as end:
            code = end.code
    results[name] = code, out.getvalue(), err.getvalue()
    json.dump(results, open(f"results{rank}.json", "w"))
"""
SLOW_FIRST = """
import os, time, typer
echo = typer.echo


def late(*args, **kwargs):
    time.sleep(1.5)
    echo(*args, **kwargs)


if os.environ["RANK"] == "0":
    typer.echo = late
from genie_cli.app import main
main()
"""
"""The first process needs long to say what is wrong."""

Outcome = tuple[int, str, str]
"""Exit code, stdout, stderr."""


def torchrun(*args: object, cwd: Path) -> Outcome:
    """Two processes as users start them."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, args)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def free_ports(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def two_processes(*args: object, cwd: Path, timeout: float = 300) -> list[Outcome]:
    """Two processes without a torchrun that ends one because of the other: what each of them does."""
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_ports(1)[0]}
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, args)],
            cwd=cwd,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for rank in (0, 1)
    ]
    try:
        ended = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(started, ended, strict=True)]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The bytes depend on the number of threads, which is one in the processes that these tests start."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A folder of what one process makes: images and their loss curve."""
    folder = tmp_path_factory.mktemp("one")
    here(*SYNTHESIZE, "--out", folder / "images.safetensors", "--log", folder / "log.csv")
    return folder


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory, by_one: Path) -> Path:
    """The folder in which two processes have run all commands, one after the other."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "images.safetensors").write_bytes((by_one / "images.safetensors").read_bytes())
    (folder / "many.py").write_text(MANY)
    ports = free_ports(len(COMMANDS))
    (folder / "commands.json").write_text(json.dumps(list(zip(COMMANDS, COMMANDS.values(), ports, strict=True))))
    assert two_processes("many.py", cwd=folder) == [(0, "", ""), (9, "", "")]
    return folder


@pytest.fixture
def outcomes(by_two: Path) -> Callable[[str], list[Outcome]]:
    """What a command has done in each of the two processes."""
    results = [json.loads((by_two / f"results{rank}.json").read_text()) for rank in (0, 1)]
    return lambda name: [tuple(result[name]) for result in results]


def here(*args: object) -> str:
    from typer.testing import CliRunner

    from genie_cli.app import app

    outcome = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="genie")
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def networks(folder: Path, name: str) -> list[Any]:
    """The network that each process ended with: codes and step sizes of weights, of activations, reports."""
    number = list(COMMANDS).index(name)
    return [torch.load(folder / f"network{rank}-{number}.pt") for rank in (0, 1)]


# --- synthesize


def test_images_are_those_of_one_process(by_one: Path, tmp_path: Path) -> None:
    """Three batches by two processes; `--` keeps torchrun from taking --n and --log for its own options."""
    folder = tmp_path / "two"
    folder.mkdir()
    code, stdout, stderr = torchrun("-m", "--", "genie_cli", *SYNTHESIZE, "--log", "log.csv", cwd=folder)
    assert code == 0, stderr
    assert stdout.count("Synthesized\n") == stdout.count("written ") == 1
    assert re.search(r"^batches +24 \+ 24 \+ 24$", stdout, re.MULTILINE)
    assert ", 2 processes\n" in stdout
    assert stderr.count("synthesize: 45 steps\n") == stderr.count("synthesize: done in") == 1
    assert "Warning" not in stderr
    assert sorted(path.name for path in folder.iterdir()) == ["images.safetensors", "log.csv"]
    for name in ("images.safetensors", "log.csv"):
        assert (folder / name).read_bytes() == (by_one / name).read_bytes()


@pytest.mark.slow
def test_more_processes_than_batches(outcomes: Any, by_two: Path, tmp_path: Path, one_thread: None) -> None:
    (code, _, stderr), second = outcomes("one batch")
    assert (code, second) == (0, (0, "", ""))
    warnings = [line for line in stderr.splitlines() if line.startswith("Warning: ")]
    assert warnings == ["Warning: 2 processes for 1 batch(es): 1 are idle; a smaller --batch-size makes more batches."]
    *arguments, _ = COMMANDS["one batch"]
    here(*arguments, tmp_path / "batch.safetensors")
    assert (by_two / "batch.safetensors").read_bytes() == (tmp_path / "batch.safetensors").read_bytes()


# --- quantize


@pytest.mark.slow
def test_two_learn_one_network(outcomes: Any, by_two: Path) -> None:
    (code, stdout, _), second = outcomes("quantize")
    assert (code, second) == (0, (0, "", ""))
    assert stdout.startswith("Quantized w4a4\n")
    assert re.search(r"^images +72 of images\.safetensors$", stdout, re.MULTILINE)
    files = sorted(path.name for path in (by_two / "quantized").iterdir())
    assert files == ["details.json", "metrics.json", "step_sizes.safetensors", "weights.safetensors"]
    assert json.loads((by_two / "performance.json").read_text())["processes"] == 2
    written = load_file(by_two / "quantized" / "step_sizes.safetensors")
    assert written and all(value.isfinite().all() for value in written.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quantize", "uneven", "ranges", "tuned", "closed form"])
def test_two_end_with_the_same_network(outcomes: Any, by_two: Path, name: str) -> None:
    assert [outcome[0] for outcome in outcomes(name)] == [0, 0]
    (codes, steps, reports), (other_codes, other_steps, other_reports) = networks(by_two, name)
    assert codes.keys() == other_codes.keys() and len(codes) >= 30
    assert all(torch.equal(codes[key], other_codes[key]) for key in codes)
    assert steps == other_steps and len(steps) == 7
    assert [report[:2] for report in reports] == [report[:2] for report in other_reports]


@pytest.mark.slow
def test_two_go_on_inside_a_unit_to_the_same_bytes(outcomes: Any, by_two: Path) -> None:
    assert [outcome[0] for outcome in outcomes("cut")] == [OTHER_ENDED, 9]
    (code, _, stderr), second = outcomes("resumed")
    assert (code, second) == (0, (0, "", ""))
    assert "going on where an earlier run was: 2 part(s) done" in stderr
    assert [json.loads((by_two / f"found{rank}.json").read_text()) for rank in (0, 1)] == [{"unit2": 50}] * 2
    for path in (by_two / "quantized").iterdir():
        assert (by_two / "resumed" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_two_quantize_as_well_as_one(by_one: Path, by_two: Path, tmp_path: Path, one_thread: None) -> None:
    out = tmp_path / "quantized"
    here(*W4A4, "--images", by_one / "images.safetensors", "--out", out)
    alone = json.loads(here(*EVALUATE, "--quantized", out, "--json"))
    together = json.loads((by_two / "metrics.json").read_text())
    assert alone["top1"] > 95 and together["top1"] > 95
    assert abs(alone["top1"] - together["top1"]) < 3


# --- evaluate


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluate", "one image"])
def test_figures_are_those_of_one_process(outcomes: Any, by_two: Path, name: str, one_thread: None) -> None:
    (code, stdout, stderr), second = outcomes(name)
    assert (code, second) == (0, (0, "", ""))
    arguments = [by_two / "quantized" if word == "quantized" else word for word in COMMANDS[name]]
    assert stdout == here(*arguments[: arguments.index("--json") + 1])
    assert ("Warning: 2 processes for 1 batch(es): 1 are idle; a smaller" in stderr) == (name == "one image")
    if name == "evaluate":
        assert (by_two / "metrics.json").read_text() == stdout


# --- what is wrong for all is said once


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "exit_code", "message"),
    [
        ("missing images", INPUT, "Error: none.safetensors does not exist."),
        ("unknown protocol", USAGE, "Error: Unknown protocol 'gennie'"),
        ("unknown option", USAGE, "No such option: --protocole"),
        ("missing params", INPUT, "Error: Params file none.yaml cannot be read"),
        ("small limit", USAGE, "Error: --memory-limit 5 B is below"),
        ("missing folder", INPUT, "Error: Output folder none does not exist"),
        ("too few images", USAGE, "Error: 2 processes share 1 images per step: start at most 1"),
        ("no gpu", 4, "Error: Device 'cuda:77' was asked for"),
    ],
)
def test_wrong_for_both(outcomes: Any, by_two: Path, name: str, exit_code: int, message: str) -> None:
    (code, stdout, stderr), second = outcomes(name)
    assert (code, stdout) == (exit_code, "")
    assert stderr.count(message) == 1
    assert stderr.count("rror") == 1 and "Traceback" not in stderr
    assert second == (exit_code, "", "")
    assert not list(by_two.glob("wrong*")) and not list(by_two.glob(".genie-*"))


@pytest.mark.slow
def test_the_first_is_heard_though_the_second_is_faster(tmp_path: Path) -> None:
    """Torchrun ends all processes as soon as one has ended."""
    script = tmp_path / "slow.py"
    script.write_text(SLOW_FIRST)
    code, stdout, stderr = torchrun(script, *COMMANDS["missing images"], cwd=Path.cwd())
    assert (code, stdout) == (1, "")
    assert stderr.count("none.safetensors does not exist. Give one") == 1
    assert stderr.startswith("loading torch\ncapturing digits_resnet\nError: none.safetensors")
    assert "Error in process" not in stderr
    assert "genie_cli/" not in stderr  # torchrun shows a traceback, of itself
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("agent", [True, False])
def test_the_others_wait_for_torchrun_alone(genie: Any, monkeypatch: pytest.MonkeyPatch, agent: bool) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    for variable, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(variable, value)
    if agent:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for arguments, code in ((["quantize", "--preset", "no"], USAGE), (["quantize", "--no"], USAGE)):
        assert genie(*arguments, code=code).stderr == ""
    assert len(waits) == (2 if agent else 0)


# --- a process that is lost


@pytest.mark.slow
def test_a_process_dies_at_work(by_two: Path) -> None:
    """The other one does not wait for it: the last command of the two."""
    ended = [json.loads((by_two / f"results{rank}.json").read_text()) for rank in (0, 1)]
    assert "loss" not in ended[1]
    code, stdout, stderr = ended[0]["loss"]
    assert (code, stdout) == (OTHER_ENDED, "")
    errors = [line for line in stderr.splitlines() if not line.startswith("evaluate: ")]
    assert len(errors) == 1
    assert errors[0].startswith("Error: Another process of this run has ended or cannot be reached; its own message")
    assert errors[0].endswith(").") and ". " not in errors[0] and ".cc" not in errors[0]
    assert not (by_two / "lost.json").exists() and not list(by_two.glob(".genie-*"))
