"""A batch worked through in pieces whose gradients add up to those of the whole, where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from genie_cli.runtime.progress import Note, Reporter
from genie_cli.runtime.shortage import is_out_of_memory, release_failed


class MicroBatches:
    """Cuts the batches of one unit into pieces: one while that fits into memory, then two, four, ...

    For losses that are means over the batch, in networks that look at each image alone: the pieces' losses,
    weighted by their shares, add up to the whole's. Only gradients are made by the piece; what follows from
    them is done once a batch. Masks that quantizers draw for a piece are not those of the whole batch's draw.
    """

    def __init__(self, batch_size: int, unit: str, report: Reporter) -> None:
        """One piece to begin with; `report` receives a warning when there are more."""
        self._batch_size, self._unit, self._report = batch_size, unit, report
        self._has_gradients = False
        self.count = 1

    @property
    def _rows(self) -> int:
        return -(-self._batch_size // self.count)

    def split(self, *tensors: Tensor) -> Iterator[tuple[float, tuple[Tensor, ...]]]:
        """The pieces ``[b, ...]`` of tensors ``[B, ...]``, each with its share of the batch."""
        if self.count == 1:
            yield 1.0, tensors
            return
        for pieces in zip(*(tensor.split(self._rows) for tensor in tensors), strict=True):
            yield len(pieces[0]) / len(tensors[0]), pieces

    def gradients_are_made(self) -> None:
        """Said by a step: what fails from here on is no matter of the pieces' size, and cannot be done again."""
        self._has_gradients = True

    def run(self, step: Callable[[], None], start_over: Callable[[], None]) -> None:
        """Take a step, in as many pieces as it needs.

        Args:
            step: makes gradients of what `split` gives, says so, and uses them.
            start_over: called after a failure, before the next try.

        Raises:
            MemoryError or RuntimeError: one image is too much, or memory ran out behind the gradients.
        """
        self._has_gradients = False
        try:
            return step()
        except (RuntimeError, MemoryError) as error:
            if self._has_gradients or self._rows == 1 or not is_out_of_memory(error):
                raise
        release_failed()
        self.count *= 2
        self._report(
            Note(
                f"unit '{self._unit}': a step of {self._batch_size} images does not fit into memory: "
                f"going on in micro-batches of {self._rows}, whose gradients add up to the same.",
                warning=True,
            )
        )
        start_over()
        self.run(step, start_over)
