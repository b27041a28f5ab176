"""Recorded steps and tasks side by side on a GPU."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch

from genie_cli.runtime.cuda_graph import WARMUP_STEPS, GraphedStep
from genie_cli.runtime.memory import free_memory, peak_memory
from genie_cli.runtime.side_by_side import side_by_side


def test_a_recording_continues_what_the_warm_up_began(device: torch.device):
    total, amount = torch.zeros((), device=device), torch.ones((), device=device)

    def add() -> None:
        total.add_(amount)

    step = GraphedStep(add, device)
    for _ in range(WARMUP_STEPS + 5):
        step()
        amount.mul_(2)
    assert float(total) == 2 ** (WARMUP_STEPS + 5) - 1


def test_inputs_of_a_recording_are_those_of_each_call(device: torch.device):
    total = torch.zeros(2, device=device)

    def add(amount: torch.Tensor) -> None:
        total.add_(amount)

    step = GraphedStep(add, device)
    for i in range(WARMUP_STEPS + 5):
        step(torch.full((2,), float(i), device=device))
    assert total.tolist() == [sum(range(WARMUP_STEPS + 5))] * 2


def test_a_recording_draws_new_random_numbers(device: torch.device):
    generator, drawn = torch.Generator(device).manual_seed(0), torch.zeros(8, device=device)

    def draw() -> None:
        drawn.uniform_(generator=generator)

    step = GraphedStep(draw, device, (generator,))
    seen = []
    for _ in range(WARMUP_STEPS + 3):
        step()
        seen.append(drawn.cpu().clone())
    assert len({tuple(each.tolist()) for each in seen}) == len(seen)


def test_random_numbers_of_a_recording_are_those_of_plain_steps(device: torch.device):
    def numbers(is_recorded: bool) -> list[list[float]]:
        generator, drawn = torch.Generator(device).manual_seed(0), torch.zeros(8, device=device)

        def draw() -> None:
            drawn.uniform_(generator=generator)

        step = GraphedStep(draw, device, (generator,)) if is_recorded else draw
        seen = []
        for _ in range(WARMUP_STEPS + 3):
            step()
            seen.append(drawn.tolist())
        return seen

    assert numbers(is_recorded=True) == numbers(is_recorded=False)


def test_memory_of_a_closed_step_is_given_back(device: torch.device):
    x = torch.zeros(1 << 20, device=device)

    def work() -> None:
        x.add_(torch.stack([x, x, x]).sum(0))

    before = torch.cuda.memory_allocated(device)
    step = GraphedStep(work, device)
    for _ in range(WARMUP_STEPS + 2):
        step()
    step.close()
    assert torch.cuda.memory_allocated(device) == before
    with pytest.raises(AssertionError, match="closed"):
        step()


def test_each_task_has_a_stream_of_its_own_and_the_caller_waits(device: torch.device):
    start = torch.ones(1 << 20, device=device)
    streams: list[int] = []
    results: list[torch.Tensor] = []

    def double() -> Generator[None, None, None]:
        streams.append(torch.cuda.current_stream(device).cuda_stream)
        value = start.clone()
        for _ in range(5):
            value = value * 2
            yield
        results.append(value)

    side_by_side([double(), double()], device)
    assert len(set(streams)) == 2
    assert all(float(value.sum()) == 32 * (1 << 20) for value in results)


def test_memory_is_told(device: torch.device):
    torch.cuda.reset_peak_memory_stats(device)
    kept = torch.empty(64 << 20, dtype=torch.uint8, device=device)
    assert kept.nbytes <= peak_memory(device)["device"] < 1 << 40
    assert 0 < free_memory(device) <= torch.cuda.mem_get_info(device)[1]
