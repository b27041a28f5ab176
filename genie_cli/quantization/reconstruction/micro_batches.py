"""A batch worked through in parts whose gradients add up to those of the whole, where memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from torch import Tensor

from genie_cli.runtime.progress import Note, Reporter
from genie_cli.runtime.shortage import is_out_of_memory, release_failed


class MicroBatches:
    """The parts that batches of one unit are cut into: one while that fits, then two, four, ...

    For losses that are means over the batch, in networks that look at each image alone: the parts' losses,
    weighted by their shares, add up to the whole's. Only gradients are made part by part; what follows from
    them is done once per batch. Masks that quantizers draw for a part are not those of the whole batch's draw.
    """

    def __init__(self, batch_size: int, unit: str, report: Reporter) -> None:
        """One part to begin with; `report` receives a warning when there are more."""
        self._batch_size, self._unit, self._report = batch_size, unit, report
        self._has_gradients = False
        self.count = 1

    def split(self, *tensors: Tensor) -> Iterator[tuple[float, tuple[Tensor, ...]]]:
        """The parts ``[b, ...]`` of tensors ``[B, ...]``, each with its share of the batch."""
        if self.count == 1:
            yield 1.0, tensors
            return
        for parts in zip(*(tensor.split(self._rows) for tensor in tensors), strict=True):
            yield len(parts[0]) / len(tensors[0]), parts

    def gradients_are_made(self) -> None:
        """Note that a step has its gradients: what fails from here on is not a matter of the parts' size."""
        self._has_gradients = True

    def attempts(self) -> Iterator[_Attempt]:
        """Tries of one step, the next one in twice as many parts where memory runs out; each is a context manager.

        A step that fails behind its gradients, or with one image, is not tried again: its error is the caller's.
        """
        while True:
            self._has_gradients = False
            attempt = _Attempt(self)
            yield attempt
            if not attempt.has_failed:
                return
            release_failed()
            self.count *= 2
            self._report(
                Note(
                    f"unit '{self._unit}': a step of {self._batch_size} images does not fit into memory: "
                    f"going on in micro-batches of {self._rows}, whose gradients add up to the same.",
                    warning=True,
                )
            )

    def can_shrink(self) -> bool:
        """True if the step that failed may be tried again in smaller parts."""
        return not self._has_gradients and self._rows > 1

    @property
    def _rows(self) -> int:
        return -(-self._batch_size // self.count)


class _Attempt:
    """One try of a step; a lack of memory that smaller parts may avoid is held back."""

    def __init__(self, owner: MicroBatches) -> None:
        self._owner = owner
        self.has_failed = False

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        is_shortage = isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error)
        self.has_failed = is_shortage and self._owner.can_shrink()
        return self.has_failed
