"""Evaluation in an arithmetic that a network cannot be computed in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genie_cli.data.labeled import TensorImages
from genie_cli.evaluation.outputs import unsupported_evaluation
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Event, Note, silent
from tests.support import CPU, lacking
from tests.support.networks import plain_input
from tests.support.stages import evaluate

HALF = RunContext.alone(CPU, torch.bfloat16, silent)
FLOAT = RunContext.alone(CPU, torch.float32, silent)


def teacher_of(make: lacking.Factory) -> Teacher:
    return make_teacher("network", make(), plain_input(1, 8))


def test_what_a_network_cannot_be_computed_in_is_found_before_the_work():
    plain, odd = (teacher_of(make) for make in (lacking.fine, lacking.shrinking))
    assert unsupported_evaluation([plain.graph], plain.input, HALF) is None
    assert unsupported_evaluation([plain.graph, odd.graph], odd.input, HALF) == "_upsample_bilinear2d_aa of 'odd'"
    assert unsupported_evaluation([odd.graph], odd.input, FLOAT) is None


def test_gradients_do_not_count():
    teacher = teacher_of(lacking.doubling)
    assert unsupported_evaluation([teacher.graph], teacher.input, HALF) is None


def test_a_network_without_a_graph_is_named_by_its_error():
    class Own(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError("no kernel\nand more")

    assert unsupported_evaluation([Own()], plain_input(1, 8), HALF) == "the network (no kernel)"


def test_a_lack_of_memory_is_not_a_matter_of_arithmetic():
    class Large(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise MemoryError

    assert unsupported_evaluation([Large()], plain_input(1, 8), HALF) is None


@pytest.fixture
def data() -> TensorImages:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (10, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return TensorImages(pixels, torch.arange(10) % 3, plain_input(1, 8))


def test_a_batch_that_fails_is_evaluated_in_float32(data: TensorImages):
    """For those who call the library in bfloat16 without asking before."""
    network, events = teacher_of(lacking.shrinking).graph, list[Event]()
    found = evaluate(network, data, 3, 5, dtype=torch.bfloat16, report=events.append)
    assert found == evaluate(network, data, 3, 5)
    notes = [event.message for event in events if isinstance(event, Note)]
    assert len(notes) == 2 and all("tried again in float32" in note for note in notes)
