"""The place where a stage keeps what it has done so far: the interface, and the one that keeps nothing."""

from __future__ import annotations

from collections.abc import Callable
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


class PartsInMemory(Work):
    """Finished parts in memory, for a stage that needs them again and keeps nothing on the disk."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._parts: dict[str, Saved] = {}

    def part(self, name: str) -> Saved | None:
        """See `Work.part`."""
        return self._parts.get(name)

    def finish(self, name: str, saved: Saved) -> None:
        """See `Work.finish`."""
        self._parts[name] = saved


class SecondRound(Work):
    """The work of a second round in the place of a first: parts that are the same are those of the first round.

    All others have names of their own there.
    """

    def __init__(self, first: Work, is_same: Callable[[str], bool]) -> None:
        """Keep the round's work in that of the first.

        Args:
            first: the work of the first round.
            is_same: by its name, whether a part comes out as in the first round.
        """
        self._first, self._is_same = first, is_same

    def _name(self, name: str) -> str:
        return name if self._is_same(name) else f"second-{name}"

    def part(self, name: str) -> Saved | None:
        """See `Work.part`."""
        return self._first.part(self._name(name))

    def finish(self, name: str, saved: Saved) -> None:
        """See `Work.finish`."""
        self._first.finish(self._name(name), saved)

    def checkpoint(self, name: str, workers: Workers) -> Saved | None:
        """See `Work.checkpoint`."""
        return self._first.checkpoint(self._name(name), workers)

    def is_due(self, name: str, workers: Workers) -> bool:
        """See `Work.is_due`."""
        return self._first.is_due(self._name(name), workers)

    def save_checkpoint(self, name: str, saved: Saved, workers: Workers) -> None:
        """See `Work.save_checkpoint`."""
        self._first.save_checkpoint(self._name(name), saved, workers)


NO_WORK = Work()
