"""Steps that are called many times: each call is one step, recorded or not, with the masks of an unrecorded run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from genie_cli.runtime.determinism import RandomMasks
from genie_cli.runtime.distribution import Workers
from genie_cli.runtime.progress import Event
from genie_cli.runtime.repeated_step import RECORD_FROM, RepeatedStep
from tests.support import CPU
from tests.support.stages import run_context


class Sum:
    """Adds masked inputs up, and counts the calls that ran its Python."""

    def __init__(self) -> None:
        self.masks = RandomMasks(0.5, torch.Generator(CPU).manual_seed(0))
        self.total = torch.zeros(6)
        self.calls = 0

    def __call__(self, values: Tensor) -> None:
        self.calls += 1
        self.total += values * self.masks.draw(values)

    def repeated(self, num_calls: int, **running: Any) -> RepeatedStep:
        return RepeatedStep(self, run_context(**running), self.masks, (self.total,), num_calls)


def after(step: RepeatedStep, owner: Sum, calls: int = 9) -> Tensor:
    values = torch.arange(6.0)
    for i in range(calls):
        step(values + i)
    return owner.total


def test_each_call_is_one_step_whether_it_is_replayed_or_not():
    plain, replayed = Sum(), Sum()
    wanted = after(plain.repeated(RECORD_FROM - 1), plain)
    assert torch.equal(after(replayed.repeated(RECORD_FROM), replayed), wanted)
    assert (plain.calls, replayed.calls) == (9, 2)  # the first shows its masks, the second is recorded


def test_steps_of_several_processes_are_not_recorded():
    own = Sum()
    after(own.repeated(RECORD_FROM, workers=Workers(0, 2)), own)
    assert own.calls == 9


def test_what_cannot_be_replayed_is_computed_and_said():
    events: list[Event] = []

    class Deciding(Sum):
        def __call__(self, values: Tensor) -> None:
            super().__call__(values)
            if float(values.sum()) > 20:
                self.total += 1

    plain, own = Deciding(), Deciding()
    wanted = after(plain.repeated(0), plain)
    assert torch.equal(after(own.repeated(RECORD_FROM, report=events.append), own), wanted)
    assert own.calls == 9 and len(events) == 1


@pytest.mark.parametrize("num_calls", [0, RECORD_FROM])
def test_a_step_without_masks_runs_as_it_is(num_calls: int):
    calls: list[int] = []
    step = RepeatedStep(lambda: calls.append(len(calls)), run_context(), num_calls=num_calls)
    for _ in range(7):
        step()
    assert calls == list(range(7))


def test_a_closed_step_refuses():
    step = RepeatedStep(lambda: None, run_context())
    step.close()
    with pytest.raises(RuntimeError, match="closed"):
        step()
