"""End a unit early, once its held-out loss has settled."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from genie_cli.config import QuantizeConfig
from genie_cli.runtime.work import Saved


class EarlyStopping:
    """Watches the held-out loss until it settles, and keeps the best state."""

    _GAIN = 1e-3
    """A loss is better if it is lower by this share."""

    def __init__(self, config: QuantizeConfig, every: int) -> None:
        """Look at most every so many steps; `config` has a patience."""
        assert config.patience is not None
        self._patience = config.patience
        self._every = max(1, min(every, config.patience // 2))
        self._first = math.ceil(config.warmup * config.num_steps)
        self._best_loss, self._best_step = math.inf, 0
        self.best: list[Tensor] | None = None

    def saved(self) -> Saved:
        """The best state, its loss and its step, for a checkpoint."""
        tensors = {f"best{i}": value for i, value in enumerate(self.best or ())}
        return Saved(tensors, {"best_loss": self._best_loss, "best_step": self._best_step})

    def resume(self, saved: Saved) -> None:
        """Go on from a checkpoint."""
        self._best_loss, self._best_step = saved.facts["best_loss"], saved.facts["best_step"]
        count = sum(name.startswith("best") for name in saved.tensors)
        self.best = [saved.tensors[f"best{i}"] for i in range(count)] or None

    def is_due(self, step: int) -> bool:
        """True if the held-out loss is to be measured now: only after the rounding regularizer has started."""
        return step > self._first and step % self._every == 0

    def is_over(self, step: int, loss: float, snapshot: Callable[[], list[Tensor]]) -> bool:
        """Take one loss into account."""
        if self.best is None or loss < self._best_loss * (1 - self._GAIN):
            self._best_loss, self._best_step, self.best = loss, step, snapshot()
        return step - self._best_step >= self._patience
