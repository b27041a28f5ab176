"""The run context: all that a stage runs on, in one value that is passed whole."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from genie_cli.runtime.distribution import SOLO, Workers
from genie_cli.runtime.interrupts import Interrupts
from genie_cli.runtime.progress import Reporter
from genie_cli.runtime.shortage import BatchSplitter
from genie_cli.runtime.work import NO_WORK, Work


@dataclass(frozen=True)
class RunContext:
    """All that a stage runs on; none of it is a part of the recipe.

    Attributes:
        device: where to compute.
        dtype: arithmetic of the networks' passes, float32 or bfloat16; statistics, losses and optimizer state stay
            float32 either way.
        workers: processes that work on the stage together.
        report: receives progress and notes.
        work: keeps finished parts and checkpoints, and finds them again.
        splitter: number of images that pass at once where memory runs out; it remembers a size that did not fit.
        log_every: steps between two readings of a loss, which make a GPU wait; checkpoints are possible only
            there. None: the stage's own number.
        interrupts: whether the user has asked the run to end.
    """

    device: torch.device
    dtype: torch.dtype
    workers: Workers
    report: Reporter
    work: Work
    splitter: BatchSplitter
    log_every: int | None = None
    interrupts: Interrupts = field(default_factory=Interrupts)

    @classmethod
    def alone(cls, device: torch.device, dtype: torch.dtype, report: Reporter) -> RunContext:
        """The context of one process that keeps nothing."""
        return cls(device, dtype, SOLO, report, NO_WORK, BatchSplitter(report))

    def in_float32(self) -> RunContext:
        """The same in float32 arithmetic."""
        return replace(self, dtype=torch.float32)

    def autocast(self) -> torch.autocast:
        """Run what is inside in this context's arithmetic."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
