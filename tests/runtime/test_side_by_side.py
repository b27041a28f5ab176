"""Tasks in turns: order, ends, errors; on CUDA streams of their own."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch

from genie_cli.runtime.side_by_side import side_by_side
from tests.support import CPU


def task(name: str, turns: int, log: list[str], fails: bool = False) -> Generator[None, None, None]:
    try:
        for turn in range(turns):
            log.append(f"{name}{turn}")
            yield
        if fails:
            raise ValueError(name)
    finally:
        log.append(f"{name} ends")


def test_tasks_take_turns_to_their_ends():
    log: list[str] = []
    side_by_side([task("a", 1, log), task("b", 3, log), task("c", 0, log)], CPU)
    assert log == ["a0", "b0", "c ends", "a ends", "b1", "b2", "b ends"]


def test_nothing_to_do_is_done():
    side_by_side([], CPU)


def test_the_failure_of_one_ends_all():
    log: list[str] = []
    with pytest.raises(ValueError, match="a"):
        side_by_side([task("a", 1, log, fails=True), task("b", 9, log), task("c", 9, log)], CPU)
    assert log == ["a0", "b0", "c0", "a ends", "b ends", "c ends"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_each_has_a_stream_of_its_own_and_the_caller_waits():
    device = torch.device("cuda", 0)
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
