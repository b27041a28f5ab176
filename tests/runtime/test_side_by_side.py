"""Tasks in turns: order, ends, errors; on CUDA streams of their own."""

from __future__ import annotations

from collections.abc import Generator

import pytest

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
