"""The rows that a unit is trained on, step by step, and those that it never is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from genie_cli.config import QuantizeConfig
from genie_cli.runtime.determinism import make_generator

DEFAULT_HOLDOUT = 0.125
"""Share of the images that early stopping watches where the configuration names none."""


def held_out_share(config: QuantizeConfig) -> float:
    """Share of the images that are never trained on."""
    return DEFAULT_HOLDOUT if config.patience is not None and not config.holdout else config.holdout


def held_out_rows(num_images: int, config: QuantizeConfig) -> Tensor:
    """Rows drawn by the seed, ``[k]`` int64; at least one image is trained on.

    Where the second half of the rows are copies of the first (`quantization/augmentation.py`), a row that is held out
    takes its copy along.
    """
    if config.reconstruct and config.augmentation != "none":
        originals = held_out_rows(num_images // 2, config.model_copy(update={"augmentation": "none"}))
        return torch.cat([originals, originals + num_images // 2])
    count = min(round(num_images * held_out_share(config)), num_images - 1)
    generator = make_generator(torch.device("cpu"), config.seed, "held out")
    return torch.randperm(num_images, generator=generator)[:count].sort().values


def complement(rows: Tensor, num_rows: int) -> Tensor:
    """The row indices below `num_rows` that are not in `rows`."""
    kept = torch.ones(num_rows, dtype=torch.bool)
    kept[rows] = False
    return kept.nonzero().flatten()


class Batches:
    """Full batches of rows without end: shuffled passes over all of them, joined at their ends."""

    def __init__(self, rows: Tensor, batch_size: int, generator: torch.Generator) -> None:
        """Batches of `batch_size` out of `rows`, shuffled by `generator`."""
        self._rows, self.batch_size, self._generator = rows, batch_size, generator
        self._rest = torch.empty(0, dtype=torch.int64)

    def draw(self) -> Tensor:
        """The next batch."""
        while len(self._rest) < self.batch_size:
            shuffled = self._rows[torch.randperm(len(self._rows), generator=self._generator)]
            self._rest = torch.cat([self._rest, shuffled])
        batch, self._rest = self._rest[: self.batch_size], self._rest[self.batch_size :]
        return batch

    def state(self) -> dict[str, Tensor]:
        """The rest of the pass, and the state of the draws."""
        return {"rest": self._rest, "generator": self._generator.get_state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self._rest = state["rest"].clone()
        self._generator.set_state(state["generator"])


class DeviceBatches:
    """The same batches with their rows on a GPU, some steps ahead: a step finds its own there, and no host waits.

    A recorded step reads the place of its rows from the device, so that it is the same for every batch.
    """

    def __init__(self, batches: Batches, num_ahead: int, device: torch.device) -> None:
        """Take from `batches`, always `num_ahead` at once."""
        self._batches, self._num_ahead = batches, num_ahead
        self._rows = torch.zeros(num_ahead, batches.batch_size, dtype=torch.int64, device=device)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._used = num_ahead

    def advance(self) -> None:
        """Go to the next batch; called before each step."""
        if self._used == self._num_ahead:
            drawn = torch.stack([self._batches.draw() for _ in range(self._num_ahead)])
            self._rows.copy_(drawn.pin_memory(), non_blocking=True)
            self._used = 0
        self._place.fill_(self._used)
        self._used += 1

    def rows(self) -> Tensor:
        """The rows of this batch, ``[b]`` int64 on the device."""
        return self._rows.index_select(0, self._place).squeeze(0)
