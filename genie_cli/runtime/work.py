"""The place where a stage keeps what it has done so far: the interface, and the one that keeps nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from genie_cli.runtime.distribution import Workers


@dataclass(frozen=True)
class Saved:
    """A part or a checkpoint: its tensors, and plain facts beside them."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class Work:
    """Finished parts of a stage, and checkpoints inside the part at work; this one keeps nothing.

    A checkpoint is called as its part, or as its part with a suffix behind a dot (``unit3.float32``).
    """

    def part(self, name: str) -> Saved | None:
        """The finished part called `name`; None: there is none."""
        return None

    def finish(self, name: str, saved: Saved) -> None:
        """Keep a finished part; its checkpoints are no longer needed."""

    def checkpoint(self, name: str, workers: Workers) -> Saved | None:
        """The newest whole checkpoint called `name`; None: there is none.

        Args:
            name: the checkpoint.
            workers: processes that work on the part together and all ask; each gets its own state of one step.
        """
        return None

    def is_due(self, name: str, workers: Workers) -> bool:
        """True if it is time for a checkpoint; the first of `workers`, which all ask, decides."""
        return False

    def save_checkpoint(self, name: str, saved: Saved, workers: Workers) -> None:
        """Keep the state inside a part.

        Args:
            name: the checkpoint.
            saved: the state of this process; its fact `step` says how far it is.
            workers: processes that work on the part together, each of which keeps its state.
        """


NO_WORK = Work()
