"""One training step, recorded as a CUDA graph and replayed: no launch waits for the host."""

from __future__ import annotations

from collections.abc import Callable

import torch

WARMUP_STEPS = 3
"""Steps before the recording: libraries choose algorithms and optimizers create their state in them."""


class ReplayedStep:
    """Calls a step; on CUDA, records it once it is warm and replays the recording from then on.

    The step must read and write tensors of fixed place alone (parameters, buffers, static inputs), use
    no host value that changes between calls, and never synchronise. Every call is one step, the
    warm-up ones too. Without CUDA the step is simply called.
    """

    def __init__(
        self, step: Callable[[], None], device: torch.device, generators: tuple[torch.Generator, ...] = ()
    ) -> None:
        """Wrap `step`; `generators` are those that it draws from on `device`."""
        self._step = step
        self._generators = generators
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._records = device.type == "cuda"
        self._device = device

    def __call__(self) -> None:
        """Run one step."""
        if not self._records:
            self._step()
        elif self._graph is not None:
            self._graph.replay()
        elif self._calls < WARMUP_STEPS:
            self._warm_up()
        else:
            self._graph = self._record()
            self._graph.replay()  # recording runs nothing
        self._calls += 1

    def _warm_up(self) -> None:
        # PyTorch asks for a side stream, on which gradients are then accumulated too
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            self._step()
        torch.cuda.current_stream(self._device).wait_stream(stream)

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        with torch.cuda.device(self._device), torch.cuda.graph(graph):
            self._step()
        return graph
