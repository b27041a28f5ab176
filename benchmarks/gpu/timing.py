"""Milliseconds of work on a device: by its own events on a GPU, by the clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from measuring import Stopwatch

from genie_cli.runtime.progress import Advanced, Event
from gpu.bench import Bench


def milliseconds(bench: Bench, work: Callable[[], object], repeats: int = 10) -> float:
    """The mean of some calls, after three to get warm: by events where there are any."""
    for _ in range(3):
        work()
    found = both_clocks(bench, work, repeats)
    return found.get("events", found["clock"])


def both_clocks(bench: Bench, work: Callable[[], object], repeats: int) -> dict[str, float]:
    """The mean milliseconds of `repeats` calls: ``clock``, and on a GPU ``events``, between which it did the work."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if bench.is_cuda else []
    bench.synchronize()
    started = time.perf_counter()
    for event in events[:1]:
        event.record()
    for _ in range(repeats):
        work()
    for event in events[1:]:
        event.record()
    bench.synchronize()
    found = {"clock": 1e3 * (time.perf_counter() - started) / repeats}
    if events:
        found["events"] = events[0].elapsed_time(events[1]) / repeats
    return found


class StepTimes(Stopwatch):
    """A reporter that keeps the seconds per step between progress events of one place, by a GPU's events too."""

    def __init__(self, bench: Bench) -> None:
        """Start with nothing measured."""
        super().__init__()
        self._bench = bench
        self._seen: list[tuple[str, int, torch.cuda.Event]] = []

    def __call__(self, event: Event) -> None:
        """Take one event."""
        super().__call__(event)
        if self._bench.is_cuda and isinstance(event, Advanced):
            self._seen.append((event.detail, event.done, torch.cuda.Event(enable_timing=True)))
            self._seen[-1][2].record()

    def by_events(self) -> Stopwatch:
        """The same by events; nothing on a CPU."""
        self._bench.synchronize()
        found = Stopwatch()
        for (place, done, event), (next_place, next_done, next_event) in zip(self._seen, self._seen[1:], strict=False):
            if place == next_place and next_done > done:
                seconds = event.elapsed_time(next_event) / 1e3 / (next_done - done)
                found.per_step.setdefault(place, []).append(seconds)
        return found
