"""A budget for stored activations: each set goes to the fastest place that has room."""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType

import torch

from genie_cli.quantization.activations.file_store import FileStore
from genie_cli.quantization.activations.staging import Staging
from genie_cli.quantization.activations.store import ActivationStore, MemoryStore, Place
from genie_cli.runtime.memory import format_size
from genie_cli.runtime.progress import Note, Reporter
from genie_cli.runtime.shortage import is_out_of_memory


class ActivationPool:
    """Hands out stores: the fastest place that has room, against a budget for each.

    The order is device, host, disk; on a CPU there is no device's place, and `device_budget` says
    nothing. The disk has no budget but its free space. Budgets hold for the stores, not for what is
    read from them, nor for two buffers of one chunk (16 MiB, or one row where that is more) under CUDA.

    Attributes:
        device: where rows are read to.
        folder: what holds the files; None: the system's folder for temporary files.
    """

    def __init__(
        self,
        device: torch.device,
        device_budget: int,
        host_budget: int,
        report: Reporter,
        folder: Path | None = None,
    ) -> None:
        """An empty pool; budgets in bytes; `report` receives a warning where memory has less room than its budget."""
        self.device = device
        self.folder = folder
        self._report = report
        self._budgets: dict[Place, int] = {"host": host_budget}
        if device.type != "cpu":
            self._budgets = {"device": device_budget, "host": host_budget}
        self._stores: set[ActivationStore] = set()
        self._in_use: dict[str, int] = {"device": 0, "host": 0, "disk": 0}
        self._peak = dict(self._in_use)
        self._staging = Staging(device)
        self._closed = False

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> ActivationStore:
        """A store of logical shape `shape`, ``[n, C, ...]`` or ``[n, F]``, in the fastest place with room.

        It takes its bytes from the budget until it is released or the pool is closed.

        Raises:
            ValueError: a shape without elements.
            InputError: the disk is needed and has no room, or cannot be written to.
            RuntimeError: the pool is closed.
        """
        if self._closed:
            raise RuntimeError("this activation pool is closed")
        shape = tuple(shape)
        if not shape or min(shape) < 1:
            raise ValueError(f"a store needs rows with elements, got shape {shape}")
        store = self._in_memory(shape, dtype)
        if store is None:
            store = FileStore(shape, dtype, self._staging, self.folder)
        store.on_release = self._take_back
        self._stores.add(store)
        self._in_use[store.place] += store.num_bytes
        self._peak[store.place] = max(self._peak[store.place], self._in_use[store.place])
        return store

    def _in_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> ActivationStore | None:
        num_bytes = math.prod(shape) * dtype.itemsize
        for place, budget in self._budgets.items():
            if self._in_use[place] + num_bytes <= budget:
                try:
                    return MemoryStore(shape, dtype, self._staging, place)
                except (RuntimeError, MemoryError, OSError) as error:
                    if not isinstance(error, OSError) and not is_out_of_memory(error):
                        raise
                # Other programs, or a limit that the budget did not know of, have taken the memory.
                self._budgets = {**self._budgets, place: self._in_use[place]}
                below = "host memory" if place == "device" else "a temporary file"
                self._report(
                    Note(
                        f"no room for {format_size(num_bytes)} of activations in {place} memory: they go to {below}.",
                        warning=True,
                    )
                )
        return None

    @property
    def in_use(self) -> dict[str, int]:
        """Bytes of the stores that are not released, by place: ``device``, ``host``, ``disk``."""
        return dict(self._in_use)

    @property
    def peak(self) -> dict[str, int]:
        """The most bytes in use at once so far, by place; each place has its own moment."""
        return dict(self._peak)

    def close(self) -> None:
        """Release every store and the buffers; again does nothing. Nothing can be allocated after that."""
        self._closed = True
        for store in list(self._stores):
            store.release()
        self._staging = Staging(self.device)

    def __enter__(self) -> ActivationPool:
        """The pool itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the pool."""
        self.close()

    def _take_back(self, store: ActivationStore) -> None:
        self._stores.discard(store)
        self._in_use[store.place] -= store.num_bytes
