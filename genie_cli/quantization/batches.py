"""Batches: the rows that a unit is trained on, step by step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def complement(rows: Tensor, num_rows: int) -> Tensor:
    """The row indices below `num_rows` that are not in `rows`."""
    kept = torch.ones(num_rows, dtype=torch.bool)
    kept[rows] = False
    return kept.nonzero().flatten()


class Batches:
    """Full batches of rows without end: shuffled passes over all of them, joined at their ends."""

    def __init__(self, rows: Tensor, batch_size: int, generator: torch.Generator) -> None:
        """Batches of `batch_size` out of `rows`, shuffled by `generator`."""
        self._rows, self._batch_size, self._generator = rows, batch_size, generator
        self._rest = torch.empty(0, dtype=torch.int64)

    def draw(self) -> Tensor:
        """The next batch."""
        while len(self._rest) < self._batch_size:
            shuffled = self._rows[torch.randperm(len(self._rows), generator=self._generator)]
            self._rest = torch.cat([self._rest, shuffled])
        batch, self._rest = self._rest[: self._batch_size], self._rest[self._batch_size :]
        return batch

    def state(self) -> dict[str, Tensor]:
        """The rows left of the pass, and the state of the random numbers."""
        return {"rest": self._rest, "generator": self._generator.get_state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self._rest = state["rest"].clone()
        self._generator.set_state(state["generator"])
