"""The time that a plan tells, under a clock: what was prepared, and the rest at the pace of the first steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from genie_cli.commands import plan
from genie_cli.commands.plan import Planned, PlannedRun
from genie_cli.runtime.distribution import Workers
from genie_cli.runtime.progress import Advanced, Event, Paced, StageStarted, silent
from genie_cli.runtime.work import NO_WORK


def planned(
    monkeypatch: pytest.MonkeyPatch, event: Callable[[int], Event], seconds: float, total: int, workers: int = 1
) -> tuple[PlannedRun, float]:
    """A plan of `total` steps of so many seconds, 3 seconds after its work began, and the clock at its end."""
    now = 100.0
    monkeypatch.setattr(plan.time, "monotonic", lambda: now)
    run = PlannedRun(torch.device("cpu"), Workers(0, workers), silent)
    run.use_float32("the test says so")
    with pytest.raises(Planned), run.working(NO_WORK) as context:
        now += 3
        context.report(StageStarted("quantize", total))
        context.report(event(0))
        for step in range(1, total + 1):
            now += seconds
            context.report(event(step))
    return run, now - 100


@pytest.mark.parametrize("seconds", [0.01, 0.7, 4.0, 50.0])
def test_the_rest_is_at_the_pace_of_the_first_steps(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    run, end = planned(monkeypatch, lambda step: Paced("quantize", step, step / 10000), seconds, 10000)
    assert run.part == "quantize" and run.estimate == pytest.approx(3 + 10000 * seconds)
    assert end <= max(60, 3 + 2 * seconds)


def test_what_costs_more_counts_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit whose steps are a hundredth of the work, and take a tenth of a second each: a count would say 1000 s."""
    run, _ = planned(monkeypatch, lambda step: Paced("quantize", step, step / 500), 0.1, 10000)
    assert run.estimate == pytest.approx(3 + 50)


def test_without_a_pace_it_is_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = planned(monkeypatch, lambda step: Advanced("quantize", step), 0.1, 10000)
    assert run.estimate == pytest.approx(3 + 1000, rel=0.01)


def test_short_work_is_done_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    run, end = planned(monkeypatch, lambda step: Paced("quantize", step, step / 10), 0.1, 10)
    assert run.estimate == pytest.approx(4) == end


def test_many_processes_do_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    run, end = planned(monkeypatch, lambda step: Paced("quantize", step, step / 10), 0.1, 10, workers=2)
    assert run.estimate is None and end == 0
