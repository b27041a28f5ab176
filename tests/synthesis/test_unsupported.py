"""Synthesis in an arithmetic that a network cannot be computed in: found out before the work, and gone around in it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from genie_cli.config import SynthesizeConfig
from genie_cli.errors import InputError
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Event, Note, silent
from genie_cli.synthesis.synthesize import Synthesis, synthesize_images
from genie_cli.synthesis.unsupported import unsupported_synthesis
from tests.support import CPU, lacking
from tests.support.networks import plain_input

CONFIG = SynthesizeConfig(num_images=4, batch_size=2, num_steps=3)
HALF = RunContext.alone(CPU, torch.bfloat16, silent)
FLOAT = RunContext.alone(CPU, torch.float32, silent)
WORDS = {
    lacking.shrinking: "_upsample_bilinear2d_aa of 'odd'",
    lacking.gated: "conv2d of 'second'",
    lacking.doubling: "doubled of 'odd'",
    lacking.filtering: "fft_rfft2 of 'odd'",
}


def teacher_of(make: lacking.Factory) -> Teacher:
    return make_teacher("network", make(), plain_input(1, 8))


def same(one: Synthesis, other: Synthesis) -> bool:
    return torch.equal(one.images, other.images) and one.log == other.log


@pytest.mark.parametrize("make", WORDS)
def test_what_a_network_cannot_be_computed_in_is_found_before_the_work(make: lacking.Factory):
    teacher = teacher_of(make)
    assert unsupported_synthesis(teacher, CONFIG, HALF) == WORDS[make]
    assert unsupported_synthesis(teacher, CONFIG, FLOAT) is None


@pytest.mark.parametrize("preset", [{}, {"generator": False}, {"swing": False}, {"class_weight": 1.0}], ids=str)
def test_nothing_is_found_in_a_plain_network(preset: dict[str, object]):
    config = CONFIG.model_copy(update=preset)
    assert unsupported_synthesis(teacher_of(lacking.fine), config, HALF) is None


def test_the_other_teachers_count_too():
    plain, odd = teacher_of(lacking.fine), teacher_of(lacking.gated)
    assert unsupported_synthesis(plain, CONFIG, HALF, [odd]) == WORDS[lacking.gated]


def test_what_stands_behind_the_last_batch_norm_counts_where_it_is_run():
    """A loss on classes runs the whole network, the statistics alone do not."""

    class Late(lacking.Body):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.second_norm(self.second(self.first_norm(self.first(x)).relu())).relu()
            return self.classify(lacking.Shrink()(x).mean((2, 3)))

    teacher = teacher_of(Late)
    assert unsupported_synthesis(teacher, CONFIG, HALF) is None
    with_classes = CONFIG.model_copy(update={"class_weight": 1.0})
    assert "_upsample_bilinear2d_aa" in str(unsupported_synthesis(teacher, with_classes, HALF))


def test_a_network_without_batch_norms_stays_the_users_error():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    with pytest.raises(InputError, match="no batch-norm layers"):
        unsupported_synthesis(make_teacher("network", network, plain_input(1, 8)), CONFIG, HALF)


def test_no_memory_for_a_step_is_not_a_matter_of_arithmetic(monkeypatch: pytest.MonkeyPatch):
    def run_out(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("genie_cli.synthesis.distill.Batch.step", run_out)
    assert unsupported_synthesis(teacher_of(lacking.gated), CONFIG, HALF) is None


@pytest.mark.parametrize("make", WORDS)
def test_a_batch_that_fails_is_made_in_float32(make: lacking.Factory):
    """For those who call the library in bfloat16 without asking before."""
    teacher, events = teacher_of(make), list[Event]()
    found = synthesize_images(teacher, CONFIG, replace(HALF, report=events.append))
    assert same(found, synthesize_images(teacher, CONFIG, FLOAT))
    notes = [event.message for event in events if isinstance(event, Note) and event.warning]
    assert len(notes) == 2, "one for each batch"
    assert all("bfloat16 cannot be used" in note and "tried again in float32" in note for note in notes)


def test_asking_before_changes_no_result():
    teacher = teacher_of(lacking.fine)
    before = synthesize_images(teacher, CONFIG, HALF)
    state = torch.get_rng_state()
    unsupported_synthesis(teacher, CONFIG, HALF)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(synthesize_images(teacher, CONFIG, HALF), before)
