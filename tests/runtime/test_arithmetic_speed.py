"""A CPU's speed in float32 and bfloat16: measured by undisturbed calls, and kept under all that it depends on."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from genie_cli.runtime import arithmetic_speed
from genie_cli.runtime.arithmetic_speed import Passes, Seconds, cpu_seconds, measure

PASSES: tuple[Passes, ...] = ("synthesize", "quantize", "evaluate")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "genie"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Passes]:
    """The measurements that are made, none of which takes time."""
    made: list[Passes] = []

    def stand_in(passes: Passes) -> Seconds:
        made.append(passes)
        return Seconds(2.0, 1.0 + len(made) / 10)

    monkeypatch.setattr(arithmetic_speed, "measure", stand_in)
    return made


class Simulated:
    """A clock that each call of a layer advances: by a fixed time for its dtype, by more while it is disturbed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, costs: dict[torch.dtype, float], disturbed: bool) -> None:
        self.now, self.calls = 0.0, itertools.count()
        self._costs, self._disturbed = costs, disturbed
        self.threads: set[int] = set()
        monkeypatch.setattr(arithmetic_speed, "_step", lambda layer, passes, dtype: lambda: self._step(dtype))
        monkeypatch.setattr(arithmetic_speed.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(arithmetic_speed.time, "thread_time", lambda: self.now)

    def _step(self, dtype: torch.dtype) -> None:
        self.threads.add(torch.get_num_threads())
        is_slow = self._disturbed and torch.get_num_threads() > 1
        self.now += self._costs[dtype] * (1 + next(self.calls) if is_slow else 1)


@pytest.mark.parametrize("passes", PASSES)
def test_a_real_measurement_has_figures_and_draws_no_numbers(passes: Passes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arithmetic_speed, "_SECONDS", 0.01)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    found = measure(passes)
    assert 0 < found.float32 < math.inf and 0 < found.bfloat16 < math.inf
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("bfloat16", "gain"), [(0.001, 1.0), (0.002, 0.0), (0.004, -0.5)])
def test_the_gain_is_the_share_of_speed(monkeypatch: pytest.MonkeyPatch, bfloat16: float, gain: float):
    Simulated(monkeypatch, {torch.float32: 0.002, torch.bfloat16: bfloat16}, disturbed=False)
    assert measure("quantize").gain == pytest.approx(gain)


def test_threads_that_disturb_each_other_are_measured_as_one(monkeypatch: pytest.MonkeyPatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        clock = Simulated(monkeypatch, {torch.float32: 0.003, torch.bfloat16: 0.002}, disturbed=True)
        assert measure("synthesize").gain == pytest.approx(0.5)
        assert clock.threads == {1, 2}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_a_slow_arithmetic_ends_too(monkeypatch: pytest.MonkeyPatch):
    clock = Simulated(monkeypatch, {torch.float32: 0.01, torch.bfloat16: 2.0}, disturbed=False)
    assert measure("synthesize").gain == pytest.approx(0.01 / 2.0 - 1)
    assert clock.now < 60


@pytest.mark.usefixtures("measured")
def test_figures_are_measured_once(measured: list[Passes]):
    first = cpu_seconds("synthesize")
    assert cpu_seconds("synthesize") == first
    assert cpu_seconds("quantize") != first
    assert measured == ["synthesize", "quantize"]


def test_they_are_measured_anew_where_something_else_computes(measured: list[Passes], monkeypatch: pytest.MonkeyPatch):
    cpu_seconds("quantize")
    threads = torch.get_num_threads()
    with monkeypatch.context() as patch:
        patch.setenv("ATEN_CPU_CAPABILITY", "another")
        cpu_seconds("quantize")
    with monkeypatch.context() as patch:
        patch.setenv("ONEDNN_MAX_CPU_ISA", "ANOTHER")
        cpu_seconds("quantize")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9")
        cpu_seconds("quantize")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads + 1)
        cpu_seconds("quantize")
    with monkeypatch.context() as patch:
        patch.setattr(arithmetic_speed, "_cpu_facts", lambda: ["another processor"])
        cpu_seconds("quantize")
    assert len(measured) == 6
    cpu_seconds("quantize")
    assert len(measured) == 6


@pytest.mark.parametrize(
    "value",
    [None, 1, [], {}, {"float32": 1}, {"float32": 1, "bfloat16": 0}, {"float32": -1, "bfloat16": 1},
     {"float32": "x", "bfloat16": 1}, {"float32": math.nan, "bfloat16": 1}, {"float32": math.inf, "bfloat16": 1},
     {"float32": 10**400, "bfloat16": 1}, {"float32": [1], "bfloat16": 1}],
    ids=range(12),
)  # fmt: skip
def test_kept_figures_that_make_no_sense_are_measured_anew(folder: Path, measured: list[Passes], value: Any):
    good = cpu_seconds("evaluate")
    (file,) = folder.iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "value": value}))
    assert cpu_seconds("evaluate") != good
    assert measured == ["evaluate", "evaluate"]
