"""Progress as events: the library reports them, the command line shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StageStarted:
    """A stage begins."""

    stage: str
    total: int | None
    """Units of work, e.g. optimisation steps over all batches; None: only the end shows how many."""
    noun: str = "steps"
    """The name of what is counted."""


@dataclass(frozen=True)
class Advanced:
    """Work was done since the last event."""

    stage: str
    done: int
    """Units of work done so far, out of the stage's total."""
    detail: str = ""
    """The place of the work, e.g. ``batch 2/8`` or ``layer1.0``."""
    values: dict[str, float] = field(default_factory=dict)
    """Figures to show, e.g. ``{"loss": 0.31}``."""


@dataclass(frozen=True)
class StageFinished:
    """A stage is done."""

    stage: str


@dataclass(frozen=True)
class Note:
    """One line the user should see: a fallback, a warning."""

    message: str
    warning: bool = False


Event = StageStarted | Advanced | StageFinished | Note
Reporter = Callable[[Event], None]


def silent(event: Event) -> None:
    """A reporter that drops every event."""
