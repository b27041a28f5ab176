"""Quantization tells its pace step by step, by the cost of each unit, and tells the steps of an earlier run apart."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from genie_cli.config import QuantizeConfig
from genie_cli.models.teacher import make_teacher
from genie_cli.quantization.plan import QuantizationPlan, make_plan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.quantization.reconstruction.learner import UnitLearner
from genie_cli.quantization.step_cost import step_cost_shares
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.distribution import SOLO
from genie_cli.runtime.progress import Event, Paced
from genie_cli.runtime.shortage import BatchSplitter
from genie_cli.runtime.work import NO_WORK, Work
from genie_cli.work.folder import WorkFolder
from tests.support import CPU, lacking
from tests.support.networks import noise, plain_input

STEPS = 4


def plan_of(**options: object) -> QuantizationPlan:
    config = QuantizeConfig(
        num_steps=STEPS, batch_size=4, weight_range="minmax", activation_range="minmax", **options
    )  # fmt: skip
    return make_plan(make_teacher("network", lacking.fine(), plain_input(1, 8)), config, CPU)


def paces(plan: QuantizationPlan, work: Work = NO_WORK) -> list[Paced]:
    events = list[Event]()
    context = RunContext(CPU, torch.float32, SOLO, events.append, work, BatchSplitter(events.append), log_every=2)
    with contextlib.suppress(KeyboardInterrupt):
        quantize_network(plan, noise(6, size=8), context)
    return [event for event in events if isinstance(event, Paced)]


@pytest.mark.parametrize("unit", ["block", "layer"])
def test_each_step_is_told_with_its_cost(unit: str):
    plan = plan_of(unit=unit)
    told, shares, expected = paces(plan), step_cost_shares(plan), list[tuple[int, bool]]()
    for before in range(0, STEPS * sum(plan.stages), STEPS):
        expected += [(before, True), *((before + step, False) for step in range(1, STEPS + 1))]
    assert [(event.done, event.found) for event in told] == expected
    assert [event.share for event in told] == sorted(event.share for event in told)
    assert told[-1].share == pytest.approx(1)
    first = STEPS * plan.stages[0]
    assert [event.share for event in told if event.done == first] == pytest.approx([shares[0]] * 2)


def test_nothing_is_told_where_nothing_learns():
    assert paces(plan_of(reconstruct=False)) == []


def test_the_steps_of_an_earlier_run_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It was ended in the second unit before its fourth step, with a checkpoint at the second."""
    next_batch, taken = UnitLearner.next_batch, list[int]()

    def mortal(learner: UnitLearner) -> tuple[torch.Tensor, ...]:
        taken.append(1)
        if len(taken) == 2 * STEPS:
            raise KeyboardInterrupt
        return next_batch(learner)

    with monkeypatch.context() as patch:
        patch.setattr(UnitLearner, "next_batch", mortal)
        paces(plan_of(), WorkFolder(tmp_path, interval=0))
    told = [(event.done, event.found) for event in paces(plan_of(), WorkFolder(tmp_path, interval=0))]
    assert told[:4] == [(STEPS, True), (STEPS + 2, True), (STEPS + 3, False), (STEPS + 4, False)]
