"""Batches that advance together give the images of batches one after the other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from genie_cli.config import InputSpec, SynthesizeConfig
from genie_cli.models.teacher import Teacher
from genie_cli.runtime.distribution import SOLO
from genie_cli.runtime.progress import Advanced, Event, Note
from genie_cli.synthesis import synthesize as synthesis
from genie_cli.synthesis.batches import batches_at_once
from genie_cli.synthesis.synthesize import Synthesis
from genie_cli.work.folder import WorkFolder
from tests.support import CPU, batches, stages


def synthesize(teacher: Teacher, at_once: int | None, events: list[Event] | None = None, **more: Any) -> Synthesis:
    config = SynthesizeConfig(num_images=20, batch_size=4, num_steps=15, batches_at_once=at_once)
    report = (lambda event: None) if events is None else events.append
    return stages.synthesize(teacher, config, report=report, **more)


@pytest.fixture(scope="module")
def one_by_one(digits_teacher: Teacher) -> Synthesis:
    return synthesize(digits_teacher, 1)


def same(one: Synthesis, other: Synthesis) -> bool:
    return torch.equal(one.images, other.images) and one.log == other.log


@pytest.mark.parametrize("at_once", [2, 5, 100])
def test_images_and_log_are_the_same(at_once: int, digits_teacher: Teacher, one_by_one: Synthesis):
    events: list[Event] = []
    assert same(synthesize(digits_teacher, at_once, events), one_by_one)
    progress = [event for event in events if isinstance(event, Advanced)]
    done = [event.done for event in progress]
    assert done == sorted(done) and done[-1] == 5 * 15
    first_turns = [event.detail for event in progress[: min(at_once, 5)]]
    assert first_turns == [f"batch {i + 1}/5" for i in range(min(at_once, 5))]


class DyingList(list[Event]):
    """Ends the run at so many reports of progress; a state is kept right behind each."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def append(self, event: Event) -> None:
        super().append(event)
        if sum(isinstance(event, Advanced) for event in self) == self.last:
            raise KeyboardInterrupt


@pytest.mark.parametrize("then", [1, 3])
def test_a_killed_run_goes_on_inside_each_of_them(
    then: int, digits_teacher: Teacher, one_by_one: Synthesis, tmp_path: Path
):
    whole = synthesize(digits_teacher, 1, log_every=4)
    with pytest.raises(KeyboardInterrupt):
        synthesize(digits_teacher, 3, DyingList(9), work=WorkFolder(tmp_path, interval=0), log_every=4)
    kept = {path.name.partition(".")[0] for path in tmp_path.glob("*.checkpoint*")}
    assert kept == {"batch0", "batch1", "batch2"}
    steps = []
    for index in range(3):
        left = WorkFolder(tmp_path).checkpoint(f"batch{index}", SOLO)
        assert left is not None
        steps.append(left.facts["step"])
    assert steps == [8, 8, 4]  # in turns: 1, 4 and, for the first two, 8
    resumed = synthesize(digits_teacher, then, work=WorkFolder(tmp_path, math.inf), log_every=4)
    assert torch.equal(resumed.images, one_by_one.images) and resumed.log == whole.log


def test_what_does_not_fit_together_goes_on_in_fewer(
    digits_teacher: Teacher, one_by_one: Synthesis, monkeypatch: pytest.MonkeyPatch
):
    batches.limit_number_alive(monkeypatch, 2)
    events: list[Event] = []
    assert same(synthesize(digits_teacher, 4, events), one_by_one)
    notes = [event.message for event in events if isinstance(event, Note)]
    assert notes == ["4 batches at once do not fit into memory: going on with fewer."]


def test_fewer_left_than_go_at_once_are_halved_themselves(
    digits_teacher: Teacher, one_by_one: Synthesis, monkeypatch: pytest.MonkeyPatch
):
    tried: list[int] = []
    run = synthesis.side_by_side

    def limited(tasks: Any, device: torch.device) -> None:
        tried.append(len(tasks))
        if len(tasks) > 2:
            raise MemoryError
        run(tasks, device)

    monkeypatch.setattr(synthesis, "side_by_side", limited)
    assert same(synthesize(digits_teacher, 100), one_by_one)
    assert tried == [5, 3, 2, 2, 1]


def test_several_where_a_batch_is_small_for_a_gpu():
    config = SynthesizeConfig()
    cuda = torch.device("cuda")

    def spec(size: int) -> InputSpec:
        return InputSpec(num_channels=3, size=size, mean=(0.0,) * 3, std=(1.0,) * 3)

    assert [batches_at_once(config, spec(size), cuda) for size in (16, 32, 64, 128, 224)] == [8, 8, 4, 1, 1]
    assert batches_at_once(config, spec(32), CPU) == 1
    assert batches_at_once(config.model_copy(update={"batches_at_once": 3}), spec(224), CPU) == 3
