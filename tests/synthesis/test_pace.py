"""Synthesis tells its pace step by step, and tells the steps of an earlier run apart."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from genie_cli.config import SynthesizeConfig
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.distribution import SOLO
from genie_cli.runtime.progress import Event, Paced
from genie_cli.runtime.shortage import BatchSplitter
from genie_cli.runtime.work import NO_WORK, Work
from genie_cli.synthesis.distill import Batch
from genie_cli.synthesis.synthesize import synthesize_images
from genie_cli.work.folder import WorkFolder
from tests.support import CPU, lacking
from tests.support.networks import plain_input

STEPS, TOTAL = 12, 24
CONFIG = SynthesizeConfig(num_images=4, batch_size=2, num_steps=STEPS)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return make_teacher("network", lacking.fine(), plain_input(1, 8))


def paces(teacher: Teacher, work: Work = NO_WORK) -> list[tuple[int, bool]]:
    events = list[Event]()
    context = RunContext(CPU, torch.float32, SOLO, events.append, work, BatchSplitter(events.append))
    with contextlib.suppress(KeyboardInterrupt):
        synthesize_images(teacher, CONFIG, context)
    told = [event for event in events if isinstance(event, Paced)]
    assert all(event.share == event.done / TOTAL and event.stage == "synthesize" for event in told)
    return [(event.done, event.found) for event in told]


def test_each_step_is_told(teacher: Teacher):
    first = [(0, True), *((done, False) for done in range(1, STEPS + 1))]
    second = [(STEPS, True), *((done, False) for done in range(STEPS + 1, TOTAL + 1))]
    assert paces(teacher) == first + second


def test_the_steps_of_an_earlier_run_are_found(teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It was ended in the second batch, 11 steps deep, with a checkpoint at the tenth."""
    step, taken = Batch.step, list[int]()

    def mortal(batch: Batch) -> None:
        taken.append(1)
        if len(taken) == 2 * (STEPS - 1):
            raise KeyboardInterrupt
        step(batch)

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "step", mortal)
        paces(teacher, WorkFolder(tmp_path, interval=0))
    assert paces(teacher, WorkFolder(tmp_path, interval=0)) == [(12, True), (22, True), (23, False), (24, False)]
