"""A plateau schedule that never waits for the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class PlateauSchedule:
    """A rate that falls when the loss has stopped falling, with all state on the loss's device.

    It follows the rule of ``ReduceLROnPlateau`` (relative threshold 1e-4), stepped on every loss. PyTorch's
    own schedule reads each loss on the host, and a GPU would wait for it.
    """

    def __init__(self, lr: float, factor: float, patience: int, min_lr: float, device: torch.device) -> None:
        """Start at `lr`; multiply by `factor` after more than `patience` losses without a new best."""
        self.lr = torch.tensor(lr, device=device)
        self._factor, self._patience, self._min_lr = factor, patience, min_lr
        self._best = torch.tensor(torch.inf, device=device)
        self._bad = torch.zeros((), device=device)

    def state(self) -> dict[str, Tensor]:
        """Rate, best loss and steps without a better one."""
        return {"lr": self.lr, "best": self._best, "bad": self._bad}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state, in place."""
        for name, value in self.state().items():
            value.copy_(state[name])

    @torch.no_grad()
    def step(self, loss: Tensor) -> None:
        """Take one loss (scalar, float32) into account; `lr` is changed in place.

        A loss that is not finite is never a new best; a rate below `min_lr` does not change.
        """
        better = loss < self._best * (1 - 1e-4)
        self._best.copy_(torch.where(better, loss, self._best))
        bad = torch.where(better, 0.0, self._bad + 1)
        lower = bad > self._patience
        lowered = torch.minimum((self.lr * self._factor).clamp(min=self._min_lr), self.lr)
        self.lr.copy_(torch.where(lower, lowered, self.lr))
        self._bad.copy_(torch.where(lower, 0.0, bad))
