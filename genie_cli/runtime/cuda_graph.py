"""A training step as a CUDA graph: recorded once, then replayed without the host in between."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genie_cli.runtime.memory import DevicePeak, free_memory

WARMUP_STEPS = 3
"""Steps before the recording: libraries choose algorithms and optimizers create their state in them."""
_ROOM = 1.2
"""Free memory that a recording needs, over the most that a warm-up step has taken: a graph has memory of its own."""


class GraphedStep:
    """Calls a step until it is warm, then records it and replays the recording from then on.

    The step must read and write tensors of fixed place alone (parameters, buffers, its inputs), use no host value that
    changes between calls, and never synchronise. Every call is one step, the warm-up ones too. Warm-up and recording
    have a stream of their own: libraries keep a workspace per stream, and graphs that replay side by side must not
    share one. Where memory has no room for a recording, steps stay as they are: one that runs out cannot be undone.
    """

    def __init__(
        self,
        step: Callable[..., None],
        device: torch.device,
        generators: Sequence[torch.Generator] = (),
        on_no_room: Callable[[], None] = lambda: None,
    ) -> None:
        """Wrap `step`.

        Args:
            step: the step.
            device: where it runs.
            generators: those that it draws from on `device`.
            on_no_room: called once where there is no room for a recording.
        """
        self._step: Callable[..., None] | None = step
        self._device, self._generators, self._on_no_room = device, generators, on_no_room
        self._stream = torch.cuda.Stream(device)
        self._calls = 0
        self._needed = 0
        self._inputs: tuple[Tensor, ...] = ()
        """The tensors that the graph reads: the first inputs, overwritten by those that follow."""
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> None:
        """Run one step."""
        assert self._step is not None, "the step is closed"
        if not self._inputs:
            self._inputs = inputs
        else:
            for place, value in zip(self._inputs, inputs, strict=True):
                place.copy_(value)
        if self._graph is None and self._calls == WARMUP_STEPS:
            self._record(self._step)
        if self._graph is not None:
            self._graph.replay()
        else:
            self._run_apart(self._step)
        self._calls += 1

    def close(self) -> None:
        """Give back the memory of the recording, and let go of all that the step holds; no calls after that."""
        if self._graph is not None:
            self._graph.reset()
        self._graph, self._step, self._inputs, self._on_no_room = None, None, (), lambda: None

    def _run_apart(self, step: Callable[..., None]) -> None:
        """Run the step on its own stream, where gradients are then accumulated too."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream), DevicePeak(self._device) as peak:
                step(*self._inputs)
        finally:  # a step that fails may be tried again, behind what it has begun
            current.wait_stream(self._stream)
        self._needed = max(self._needed, peak.num_bytes)

    def _record(self, step: Callable[..., None]) -> None:
        gc.collect()  # what a finished part left in reference cycles
        torch.cuda.empty_cache()
        if free_memory(self._device) < _ROOM * self._needed:
            self._on_no_room()
            return
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        recording = torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local")
        with torch.cuda.device(self._device), recording:
            step(*self._inputs)  # recording runs nothing
        self._graph = graph
