"""Steps as CUDA graphs: a few run, one is recorded, the others are replayed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from genie_cli.runtime.cuda_graph import WARMUP_STEPS, GraphedStep


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of CUDA, by its names; nothing computes."""
    seen: list[str] = []

    class Stream:
        def __init__(self, device: torch.device, name: str = "side") -> None:
            self.name = f"{name} of {device}"

        def wait_stream(self, other: Stream) -> None:
            seen.append(f"{self.name} waits for {other.name}")

    class Graph:
        def register_generator_state(self, generator: Any) -> None:
            seen.append(f"{generator} belongs to the recording")

        def replay(self) -> None:
            seen.append("replay")

    @contextmanager
    def during(what: Any) -> Iterator[None]:
        what = {Stream: lambda: what.name, Graph: lambda: "recording"}.get(type(what), lambda: what)()
        seen.append(f"{what} begins")
        yield
        seen.append(f"{what} ends")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device, "main"))
    for name in ("stream", "graph", "device"):
        monkeypatch.setattr(torch.cuda, name, during)
    return seen


def test_what_is_asked_of_cuda(events: list[str]):
    """Each call is one step: warm-up steps run on a stream of their own, and the recording itself runs nothing."""
    generator: Any = "generator"
    step = GraphedStep(lambda: events.append("step"), torch.device("cuda", 1), (generator,))
    for _ in range(WARMUP_STEPS + 3):
        step()
    side, main = "side of cuda:1", "main of cuda:1"
    warm_up = [f"{side} waits for {main}", f"{side} begins", "step", f"{side} ends", f"{main} waits for {side}"]
    recording = ["cuda:1 begins", "recording begins", "step", "recording ends", "cuda:1 ends"]
    first = ["generator belongs to the recording", *recording, "replay"]
    assert events == [*warm_up * WARMUP_STEPS, *first, "replay", "replay"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_recording_continues_what_the_warm_up_began():
    device = torch.device("cuda")
    total, amount = torch.zeros((), device=device), torch.ones((), device=device)
    step = GraphedStep(lambda: total.add_(amount) and None, device)
    for _ in range(WARMUP_STEPS + 5):
        step()
        amount.mul_(2)
    assert float(total) == 2 ** (WARMUP_STEPS + 5) - 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_recording_draws_new_random_numbers():
    device = torch.device("cuda")
    generator, drawn = torch.Generator(device).manual_seed(0), torch.zeros(8, device=device)
    step = GraphedStep(lambda: drawn.uniform_(generator=generator) and None, device, (generator,))
    seen = []
    for _ in range(WARMUP_STEPS + 3):
        step()
        seen.append(drawn.cpu().clone())
    assert len({tuple(each.tolist()) for each in seen}) == len(seen)
