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
class Paced:
    """Work was done, without a look at its figures: sent before a part's first step, and after steps that are over."""

    stage: str
    done: int
    """Units of work done so far, out of the stage's total."""
    share: float
    """The same as a share of the stage's cost, 0 to 1: one unit of work may take longer than another."""
    found: bool = False
    """True if an earlier run did what came since the last event."""


@dataclass(frozen=True)
class StageFinished:
    """A stage is done."""

    stage: str


@dataclass(frozen=True)
class Note:
    """One line the user should see: a fallback, a warning."""

    message: str
    warning: bool = False


Event = StageStarted | Advanced | Paced | StageFinished | Note
Reporter = Callable[[Event], None]


def silent(event: Event) -> None:
    """A reporter that drops every event."""
