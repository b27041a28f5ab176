"""The arithmetic as a user meets it: no traceback, a reason in the summary, unfinished runs that go on in theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from genie_cli.app import app
from genie_cli.runtime import arithmetic
from genie_cli.runtime.arithmetic_speed import Seconds
from genie_cli.synthesis.distill import Batch

NETWORK = "from tests.support.lacking import fine, shrinking, gated\n"
INPUT = ("--input-size", "8", "--num-channels", "1", "--mean", "0", "--std", "1")
SHORT = ("--n", "4", "--batch-size", "2", "--num-steps", "12", "--checkpoint-interval", "0", "--out", "i.safetensors")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("network.py").write_text(NETWORK)
    return tmp_path


@pytest.fixture
def gain(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the share by which bfloat16 is faster on this machine."""

    def measured(share: float) -> None:
        monkeypatch.setattr(arithmetic, "cpu_seconds", lambda passes: Seconds(1.0 + share, 1.0))

    return measured


def genie(command: str, factory: str, *options: str) -> Result:
    result = CliRunner().invoke(app, [command, "--model", f"network.py:{factory}", *INPUT, *options])
    assert "Traceback" not in result.output
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def done(command: str, factory: str, *options: str) -> Result:
    result = genie(command, factory, *options)
    assert result.exit_code == 0, result.output
    return result


def summary(result: Result) -> dict[str, str]:
    rows = (line.split(maxsplit=1) for line in result.stdout.splitlines() if " " in line)
    return {key: value.strip() for key, value in rows}


def images() -> torch.Tensor:
    return load_file("i.safetensors")["images"]


@pytest.mark.parametrize(
    ("factory", "operation"), [("shrinking", "_upsample_bilinear2d_aa of 'odd'"), ("gated", "conv2d of 'second'")]
)
def test_synthesis_of_any_network_ends(factory: str, operation: str):
    reason = f"{operation} cannot be computed in bfloat16"
    result = done("synthesize", factory, *SHORT, "--precision", "bf16")
    assert f"Warning: {reason}: the run goes on in float32." in result.stderr
    assert summary(result)["arithmetic"] == f"float32: {reason}"
    found = images()
    assert summary(done("synthesize", factory, *SHORT, "--precision", "fp32"))["arithmetic"] == "float32: asked for"
    assert torch.equal(images(), found)


def test_quantization_and_evaluation_of_any_network_end():
    pixels = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_file({"images": pixels, "labels": torch.arange(12) % 3}, "data.safetensors")
    reason = "_upsample_bilinear2d_aa of 'odd' cannot be computed in bfloat16"
    steps = ("--images", "data.safetensors", "--num-steps", "3", "--batch-size", "4", "--precision", "bf16")
    result = done("quantize", "shrinking", *steps)
    assert f"Warning: {reason}: the run goes on in float32." in result.stderr
    assert summary(result)["arithmetic"] == f"float32: {reason}"
    data = ("--data", "data.safetensors", "--quantized", "quantized", "--json")
    result = done("evaluate", "shrinking", *data, "--precision", "bf16")
    assert f"Warning: {reason}" in result.stderr
    assert result.stdout == done("evaluate", "shrinking", *data, "--precision", "fp32").stdout


@pytest.mark.parametrize(
    ("share", "row"),
    [(0.5, "bfloat16: it gains 50 %, measured"), (0.03, "float32: bfloat16 gains 3 %, measured")],
)
def test_the_summary_says_what_was_chosen_and_why(gain: Callable[[float], None], share: float, row: str):
    gain(share)
    assert summary(done("synthesize", "fine", *SHORT))["arithmetic"] == row


def test_dfq_measures_nothing(monkeypatch: pytest.MonkeyPatch):
    def refuse(passes: str) -> Seconds:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr(arithmetic, "cpu_seconds", refuse)
    result = done("quantize", "fine", "--preset", "dfq")
    assert summary(result)["arithmetic"] == "float32: the network is not run"


def interrupt(monkeypatch: pytest.MonkeyPatch, at_step: int) -> None:
    """End the process in the second batch, before this of its steps."""
    step, taken = Batch.step, list[int]()

    def mortal(batch: Batch) -> None:
        taken.append(1)
        if len(taken) == 1 + 11 + at_step:  # one is tried before the work, the last one of a batch only looks
            raise KeyboardInterrupt
        step(batch)

    monkeypatch.setattr(Batch, "step", mortal)


@pytest.mark.parametrize("again", [0.0, 0.5])
def test_an_unfinished_run_goes_on_in_its_arithmetic(
    gain: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, again: float
):
    gain(0.5)
    done("synthesize", "fine", *SHORT)
    expected = images()
    with monkeypatch.context() as patch:
        interrupt(patch, at_step=11)
        assert genie("synthesize", "fine", *SHORT, "--fresh").exit_code == 130
    gain(again)
    result = done("synthesize", "fine", *SHORT)
    assert "going on where an earlier run was" in result.stderr
    assert summary(result)["arithmetic"] == "bfloat16: that of the unfinished run, which goes on"
    assert torch.equal(images(), expected)
    assert not Path(".genie-work").exists()


def test_a_fresh_run_leaves_nothing_of_the_other_arithmetic(
    gain: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
):
    gain(0.5)
    with monkeypatch.context() as patch:
        interrupt(patch, at_step=11)
        assert genie("synthesize", "fine", *SHORT).exit_code == 130
    assert len(list(Path(".genie-work").iterdir())) == 1
    gain(0.0)
    result = done("synthesize", "fine", *SHORT, "--fresh")
    assert summary(result)["arithmetic"] == "float32: bfloat16 gains 0 %, measured"
    assert not Path(".genie-work").exists()
