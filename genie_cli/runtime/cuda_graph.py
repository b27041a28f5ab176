"""A training step as a CUDA graph: recorded once, then replayed without the host in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARMUP_STEPS = 3
"""Steps before the recording: libraries choose algorithms and optimizers create their state in them."""


class GraphedStep:
    """Calls a step until it is warm, then records it and replays the recording from then on.

    The step must read and write tensors of fixed place alone (parameters, buffers, its inputs), use no host value that
    changes between calls, and never synchronise. Every call is one step, the warm-up ones too.
    """

    def __init__(
        self, step: Callable[..., None], device: torch.device, generators: Sequence[torch.Generator] = ()
    ) -> None:
        """Wrap `step`; `generators` are those that it draws from on `device`."""
        self._step, self._device, self._generators = step, device, generators
        self._calls = 0
        self._inputs: tuple[Tensor, ...] = ()
        """Where the graph reads: the first inputs, overwritten by those that follow."""
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> None:
        """Run one step."""
        if not self._inputs:
            self._inputs = inputs
        else:
            for place, value in zip(self._inputs, inputs, strict=True):
                place.copy_(value)
        if self._graph is None and self._calls < WARMUP_STEPS:
            self._warm_up()
        else:
            if self._graph is None:
                self._graph = self._record()  # recording runs nothing
            self._graph.replay()
        self._calls += 1

    def _warm_up(self) -> None:
        # PyTorch asks for a side stream, on which gradients are then accumulated too
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            self._step(*self._inputs)
        torch.cuda.current_stream(self._device).wait_stream(stream)

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        with torch.cuda.device(self._device), torch.cuda.graph(graph):
            self._step(*self._inputs)
        return graph
