"""Graphs of the pretended GPU: a recording is the list of its operations on tensors of fixed place.

As on CUDA, recording a step changes nothing: what it has written is put back, and what it has made holds garbage
until the first replay.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from tests.support.pretended_streams import Accesses, Stream

if TYPE_CHECKING:
    from tests.support.pretended_gpu import PretendedGpu
    from tests.support.pretended_tensors import Operation


@dataclass
class Recorded:
    """One recording, for tests to look at; it holds no tensors.

    Attributes:
        stream: the stream it was recorded on.
        pool: the pool of its memory.
        operations: in their order.
        num_replays: how often it was replayed.
        was_reset: its memory was given back.
    """

    stream: int
    pool: Any
    operations: list[Operation]
    num_replays: int = 0
    was_reset: bool = False


class Graph:
    """Stands for ``torch.cuda.CUDAGraph``."""

    def __init__(self, gpu: PretendedGpu, keep_graph: bool = False) -> None:
        self._gpu = gpu
        self._generators: list[torch.Generator] = []
        self._tape: _Tape | None = None
        self._recorded: Recorded | None = None

    def register_generator_state(self, generator: torch.Generator) -> None:
        """Let each replay draw on from `generator`."""
        self._generators.append(generator)

    def pool(self) -> Any:
        """The pool of its memory."""
        assert self._recorded is not None, "the graph is empty"
        return self._recorded.pool

    def replay(self) -> None:
        """Compute the recorded operations again, on the tensors that they had."""
        if self._tape is None or self._recorded is None:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        self._recorded.num_replays += 1
        self._gpu.operate(self._tape.reads, self._tape.writes, "a replay")
        self._tape.replay()

    def reset(self) -> None:
        """Give its memory back."""
        if self._recorded is not None:
            self._recorded.was_reset = True
        self._tape = None

    def begin(self, pool: Any) -> _Tape:
        """Start to record on the current stream."""
        self._recorded = Recorded(self._gpu.current.cuda_stream, pool or self._gpu.new_pool(), [])
        self._tape = _Tape(self._recorded, self._generators)
        return self._tape

    def end(self, is_whole: bool) -> None:
        """Stop to record, and leave all as it was."""
        assert self._tape is not None and self._recorded is not None
        self._tape.undo()
        if is_whole:
            self._gpu.allocate(self._tape, self._tape.num_bytes())
            self._gpu.graphs.append(self._recorded)
        else:
            self._tape = None


class Capture:
    """Stands for ``torch.cuda.graph``: what happens inside is recorded."""

    def __init__(
        self, gpu: PretendedGpu, graph: Graph, pool: Any = None, stream: Stream | None = None, **options: Any
    ) -> None:
        self._gpu, self._graph, self._pool = gpu, graph, pool
        if stream is None:
            gpu.capture_stream = gpu.capture_stream or Stream(gpu)
            stream = gpu.capture_stream
        self._on_stream = gpu.stream(stream)

    def __enter__(self) -> None:
        self._gpu.host_waits("for all before a recording")
        self._on_stream.__enter__()
        for listen in self._gpu.on_capture:
            listen()
        self._gpu.capturing = self._graph.begin(self._pool)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._gpu.capturing = None
        with _as_a_plain_cpu():
            self._graph.end(error is None)
        self._on_stream.__exit__(kind, error, trace)


class _Tape:
    """Operations in their order, with all that it takes to compute them again."""

    def __init__(self, recorded: Recorded, generators: list[torch.Generator]) -> None:
        self._recorded = recorded
        self._generators = [(generator, generator.get_state()) for generator in generators]
        self._entries: list[tuple[Any, Any, Any, list[tuple[int, Tensor]]]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        """Memory that is written to -> its bytes, and a copy of what they were."""
        self._made: dict[int, Tensor] = {}
        """Memory that the recording has taken -> a tensor over it."""
        self._lives: dict[int, list[int]] = {}
        """The same -> the operations that made it and that used it last."""
        self.reads: list[Accesses] = []
        self.writes: list[Accesses] = []

    def check_generator(self, generator: torch.Generator) -> None:
        """Refuse random numbers of a generator that the graph does not know."""
        if generator._cdata not in [known._cdata for known, _ in self._generators]:
            raise RuntimeError(
                "Attempt to increase offset for a CUDA generator not in capture mode: it is not registered."
            )

    def before(self, written: list[Tensor]) -> None:
        """Keep what an operation will write over."""
        for tensor in written:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._made and storage._cdata not in self._before:
                flat = torch.empty(0, dtype=torch.uint8).set_(storage)
                self._before[storage._cdata] = (flat, flat.clone())

    def after(self, operation: Operation, compute: Any, args: Any, kwargs: Any, new: list[tuple[int, Tensor]]) -> None:
        """Note the operation, how it is computed, and the tensors that it has made among its results."""
        now = len(self._recorded.operations)
        self._recorded.operations.append(operation)
        for _, tensor in new:
            self._made[tensor.untyped_storage()._cdata] = tensor.detach()
            self._lives[tensor.untyped_storage()._cdata] = [now, now]
        for tensor in tensors_in(*args, *kwargs.values()):
            self._lives.get(tensor.untyped_storage()._cdata, [now, now])[1] = now
        if operation.outputs:
            own_args, own_kwargs = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
            self._entries.append((compute, own_args, own_kwargs, [(place, tensor.detach()) for place, tensor in new]))

    def undo(self) -> None:
        """Put back what the recording has written, and spoil what it has made."""
        for flat, copy in self._before.values():
            flat.copy_(copy)
        self._before.clear()
        for tensor in self._made.values():
            tensor.fill_(torch.nan if tensor.is_floating_point() else 77)
        for generator, state in self._generators:
            generator.set_state(state)
        self.reads = list({id(each): each for each in self.reads}.values())
        self.writes = list({id(each): each for each in self.writes}.values())

    def num_bytes(self) -> int:
        """Memory for what it makes, each part of which serves again once it is no longer used."""
        changes = [0] * (len(self._recorded.operations) + 1)
        for key, (made, last) in self._lives.items():
            num_bytes = self._made[key].untyped_storage().nbytes()
            changes[made] += num_bytes
            changes[last + 1] -= num_bytes
        return max(itertools.accumulate(changes))

    def replay(self) -> None:
        """Compute all again."""
        with _as_a_plain_cpu(), torch.no_grad():
            for compute, args, kwargs, new in self._entries:
                result = compute(*args, **kwargs)
                results = [result] if isinstance(result, Tensor) else result
                for place, tensor in new:
                    tensor.copy_(results[place])


def tensors_in(*values: Any) -> list[Tensor]:
    """The tensors among the values, and in lists and tuples among them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_in(*value)
    return found


def written_by(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operation writes to."""
    found: list[Tensor] = []
    for place, name in _written_arguments(func):
        value = args[place] if place < len(args) else kwargs.get(name)
        found += [each for each in (value if isinstance(value, list | tuple) else [value]) if each is not None]
    if func is torch.ops.aten.native_batch_norm.default and args[5]:  # running statistics, which its schema hides
        found += [each for each in args[3:5] if each is not None]
    return found


@cache
def _written_arguments(func: Any) -> list[tuple[int, str]]:
    arguments = enumerate(func._schema.arguments)
    return [(place, each.name) for place, each in arguments if each.alias_info is not None and each.alias_info.is_write]


@contextmanager
def _as_a_plain_cpu() -> Iterator[None]:
    """Inside, tensors are what they are."""
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        yield
