"""Shortage of memory: parts small enough, the same result, and other errors untouched."""

from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genie_cli.runtime.progress import Event, Note, silent
from genie_cli.runtime.shortage import BatchSplitter, fits, is_out_of_memory


def allocator_error() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    return caught.value


def test_what_counts_as_a_shortage():
    assert is_out_of_memory(allocator_error())
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert is_out_of_memory(RuntimeError("Resource temporarily unavailable"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for a convolution"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator: can't allocate memory"))


def test_a_recording_that_a_shortage_broke_off_counts_too():
    with pytest.raises(RuntimeError) as caught:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("the capture was invalidated")
    assert is_out_of_memory(caught.value)


def test_a_gpu_gets_back_what_a_failed_attempt_has_held(monkeypatch: pytest.MonkeyPatch):
    held: list[weakref.ref[Tensor]] = []
    given_back: list[bool] = []

    def attempt() -> None:
        tensor = torch.ones(3)
        held.append(weakref.ref(tensor))
        raise MemoryError

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(held[0]() is None))
    assert fits(lambda: None)
    assert given_back == []
    assert not fits(attempt)
    assert given_back == [True]  # once, when the attempt's tensors were gone


@settings(max_examples=5)  # each shortage collects garbage
@given(size=st.integers(1, 40), fits=st.integers(1, 40))
def test_parts_fit_and_join_in_order(size: int, fits: int):
    error = MemoryError()
    seen: list[int] = []
    events: list[Event] = []
    attempts = 0

    def double(batch: Tensor) -> Tensor:
        nonlocal attempts
        attempts += 1
        if len(batch) > fits:
            raise error
        seen.append(len(batch))
        return 2 * batch

    batch = torch.arange(size * 3).view(size, 3)
    splitter = BatchSplitter(events.append)
    assert torch.equal(splitter(double, batch), 2 * batch)
    assert sum(seen) == size and max(seen) <= fits
    assert len(events) == (size > fits) and all(isinstance(event, Note) and event.warning for event in events)
    before, attempts = len(seen), 0
    splitter(double, batch)
    assert attempts == len(seen) - before, "a size that did not fit is tried again"
    assert len(events) == (size > fits)


def test_one_image_that_does_not_fit_and_other_errors_are_raised():
    def fail(batch: Tensor) -> Tensor:
        raise MemoryError

    with pytest.raises(MemoryError):
        BatchSplitter(silent)(fail, torch.zeros(3, 2))

    calls = []

    def defect(batch: Tensor) -> Tensor:
        calls.append(len(batch))
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        BatchSplitter(silent)(defect, torch.zeros(4, 2))
    assert calls == [4]
