"""A pretended GPU: tensors claim to be on ``cuda:0`` and are computed on the CPU, so that CUDA branches run here.

Inside of ``with PretendedGpu() as gpu`` the code sees a CUDA device. Tensors of two devices do not mix, a recording
refuses what a CUDA graph cannot hold, and each place where the host would wait for the GPU is counted. Behind it all is
as it was: what was replaced is put back, and no tensor needs to be moved back to the host.

It has limits. Kernels are those of the CPU, so that bits differ from a GPU's. Autocast uses the lists of a CPU.
``torch.export`` asks CUDA itself: networks are captured outside.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from genie_cli.runtime import memory
from tests.support.pretended_graphs import Capture, Graph, Recorded
from tests.support.pretended_streams import Accesses, Event, Stream, Streams
from tests.support.pretended_tensors import (
    CPU,
    GPU,
    Claims,
    Operation,
    Operations,
    Place,
    finalize,
    place_in_package,
    place_of,
)

__all__ = ["CPU", "GPU", "Operation", "PretendedGpu", "Recorded", "place_of", "settings_kept"]


class PretendedGpu(Streams):
    """A context manager, inside of which there is one CUDA device.

    Attributes:
        total_memory: bytes of the device; no more of them can be taken.
        capability: compute capability.
        synchronisations: (what is done, function of the package) -> how often the host has waited there.
        graphs: recordings in their order.
        allocated: bytes of the tensors on the device that are alive; each recording takes its peak.
        peak: the most that this was since the peak was set back.
        listeners: called with each operation on the device; a replay calls none.
        on_capture: called at the start of each recording.
    """

    def __init__(self, total_memory: int = 80 << 30, capability: tuple[int, int] = (9, 0)) -> None:
        super().__init__()
        self.total_memory, self.capability = total_memory, capability
        self.synchronisations: Counter[tuple[str, str]] = Counter()
        self.graphs: list[Recorded] = []
        self.allocated = self.peak = 0
        self.listeners: list[Callable[[Operation], None]] = []
        self.on_capture: list[Callable[[], None]] = []
        self.capturing: Any = None
        self.capture_stream: Stream | None = None
        self.generators: dict[int, torch.Generator] = {}
        self.making_at: Place | None = None
        self._num_pools = 0
        self._installed = ExitStack()

    def __enter__(self) -> PretendedGpu:
        """Put the device in."""
        with ExitStack() as stack:
            stack.enter_context(settings_kept())
            for owner, name, stand_in in self._stand_ins():
                stack.enter_context(mock.patch.object(owner, name, stand_in))
            stack.enter_context(mock.patch.dict(memory._earlier_peaks, clear=True))
            stack.enter_context(mock.patch.dict(os.environ))
            stack.enter_context(Claims(self))
            stack.enter_context(Operations(self))
            self._installed = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        """Take it out."""
        self._installed.close()

    # what tensors and recordings tell

    def is_capturing(self) -> bool:
        """True inside a recording."""
        return self.capturing is not None

    def host_waits(self, kind: str, clock: dict[int, int] | None = None) -> None:
        """Count it; a recording refuses."""
        place = place_in_package()
        if self.capturing is not None:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({place} {kind})")
        self.synchronisations[kind, place] += 1
        super().host_waits(kind, clock)

    def cross(self, source: Tensor, target: Place, is_asynchronous: bool) -> None:
        """A copy between host and device: the host waits, unless it goes up from page-locked memory."""
        is_pinned = getattr(source.untyped_storage(), "_pretended_pinned", False)
        if not (target == "gpu" and is_asynchronous and is_pinned):
            self.host_waits("copies to the GPU" if target == "gpu" else "copies to the host")

    @contextmanager
    def making(self, place: Place) -> Iterator[None]:
        """What is made inside is at this place."""
        before, self.making_at = self.making_at, place
        try:
            yield
        finally:
            self.making_at = before

    def put(self, tensor: Tensor, place: Place) -> None:
        """Say where a tensor is; on the device it takes memory.

        Raises:
            torch.OutOfMemoryError: there is too little.
        """
        with torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()
            num_bytes = storage.nbytes()
        was = getattr(storage, "_pretended_place", "host")
        storage._pretended_place = place
        if place != "gpu" or was == "gpu" or self.capturing is not None:  # a recording has memory of its own
            return
        self.allocate(storage, num_bytes)
        storage._pretended_accesses = accesses = self.take()
        finalize(storage, self.free, accesses)

    def allocate(self, owner: Any, num_bytes: int) -> None:
        """Take memory for as long as `owner` lives.

        Raises:
            torch.OutOfMemoryError: there is too little.
        """
        if self.allocated + num_bytes > self.total_memory:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {num_bytes} bytes.")
        self.allocated += num_bytes
        self.peak = max(self.peak, self.allocated)
        finalize(owner, self._given_back, num_bytes)

    def operate(self, reads: list[Accesses], writes: list[Accesses], what: str) -> None:
        """Give the current stream an operation; a recording keeps it for its replays."""
        if self.capturing is None:
            super().operate(reads, writes, what)
        else:
            self.capturing.reads += reads
            self.capturing.writes += writes

    def new_pool(self) -> tuple[int, int]:
        """A pool of memory for graphs."""
        self._num_pools += 1
        return (0, self._num_pools)

    @contextmanager
    def stream(self, stream: Stream | None) -> Iterator[None]:
        """Operations inside go to the stream."""
        before = self.current
        self.current = stream or before
        try:
            yield
        finally:
            self.current = before

    def _given_back(self, num_bytes: int) -> None:
        self.allocated -= num_bytes

    # what stands for PyTorch's own

    def _stand_ins(self) -> Iterator[tuple[Any, str, Any]]:
        yield torch, "Generator", _generator_class(self.generators)
        yield torch, "autocast", _Autocast
        yield torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(_grouped)
        yield torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda")
        yield torch.accelerator, "current_stream", lambda device=None: self.current
        yield from ((torch.cuda, name, stand_in) for name, stand_in in self._of_torch_cuda().items())

    def _of_torch_cuda(self) -> dict[str, Any]:
        return {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "set_device": lambda device: None,
            "get_device_name": lambda device=None: "a pretended GPU",
            "get_device_capability": lambda device=None: self.capability,
            "manual_seed": lambda seed: None,
            "manual_seed_all": lambda seed: None,
            "synchronize": lambda device=None: self.host_waits("for all"),
            "device": nullcontext,
            # streams and graphs
            "Stream": _on(self, Stream),
            "Event": _on(self, Event),
            "stream": self.stream,
            "current_stream": lambda device=None: self.current,
            "is_current_stream_capturing": self.is_capturing,
            "CUDAGraph": _on(self, Graph),
            "graph": _on(self, Capture),
            "graph_pool_handle": self.new_pool,
            # memory
            "mem_get_info": lambda device=None: (self.total_memory - self.allocated, self.total_memory),
            "memory_allocated": lambda device=None: self.allocated,
            "max_memory_allocated": lambda device=None: self.peak,
            "reset_peak_memory_stats": self._reset_peak,
            "empty_cache": lambda: None,
        }

    def _reset_peak(self, device: Any = None) -> None:
        self.peak = self.allocated


def _on(gpu: PretendedGpu, kind: type) -> type:
    """The class with the GPU as its first argument."""

    class OnGpu(kind):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(gpu, *args, **options)

    return OnGpu


def _generator_class(on_gpu: dict[int, torch.Generator]) -> type[torch.Generator]:
    """The class ``torch.Generator`` with generators on the pretended GPU, which `on_gpu` keeps."""
    of_host = torch.Generator

    class Generator(torch.Generator):
        def __new__(cls, device: Any = "cpu") -> torch.Generator:
            if torch.device(device).type != "cuda":
                return of_host(device)
            made = super().__new__(cls)
            on_gpu[made._cdata] = made
            return made

        @property
        def device(self) -> torch.device:
            return GPU

    return Generator


class _Autocast(torch.autocast):
    """Autocast of the CPU, where that of CUDA is asked for."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _grouped(lists: Any, with_indices: bool = False) -> Any:
    """Tensors by the device that they claim, and by type."""
    found: dict[Any, Any] = {}
    for i, first in enumerate(lists[0]):
        group, indices = found.setdefault((first.device, first.dtype), ([[] for _ in lists], []))
        for own, every in zip(group, lists, strict=True):
            own += [every[i]] if every else []
        indices.append(i)
    return found


@contextmanager
def settings_kept() -> Iterator[None]:
    """Behind it, PyTorch's settings for reproducible results are what they were."""
    were_deterministic, cudnn = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn
    fills, kept = torch.utils.deterministic, (cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    filled = fills.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(were_deterministic)
        fills.fill_uninitialized_memory = filled
        cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept
