"""A plateau schedule that never waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor


class PlateauSchedule:
    """Lower a rate when the loss has stopped falling, with all state on the loss's device.

    The rule of ``ReduceLROnPlateau`` (relative threshold 1e-4), stepped on every loss. PyTorch's own
    reads each loss on the host, and a GPU would stand still for it.
    """

    def __init__(self, lr: float, factor: float, patience: int, min_lr: float, device: torch.device) -> None:
        """Start at `lr`; multiply by `factor` after more than `patience` losses without a new best."""
        self.lr = torch.tensor(lr, device=device)
        self._factor, self._patience, self._min_lr = factor, patience, min_lr
        self._best = torch.tensor(torch.inf, device=device)
        self._bad = torch.zeros((), device=device)

    @torch.no_grad()
    def step(self, loss: Tensor) -> None:
        """Take one loss (scalar, float32) into account; `lr` is changed in place."""
        better = (loss < self._best * (1 - 1e-4)).float()
        self._best.copy_(torch.minimum(self._best, loss) * better + self._best.nan_to_num(posinf=0) * (1 - better))
        self._bad.add_(1).mul_(1 - better)
        lower = (self._bad > self._patience).float()
        self.lr.mul_(1 - lower * (1 - self._factor)).clamp_(min=self._min_lr)
        self._bad.mul_(1 - lower)
