"""The idea of a stage's cost: one note, early, where it will take long, with the options that make it shorter."""

from __future__ import annotations

import time
from collections.abc import Sequence

from genie_cli.commands.pace import Pace
from genie_cli.runtime.progress import Event, Note, Paced, Reporter, StageStarted

LONG = 600.0
"""Seconds from which a stage is long."""
_CONFIDENT = 10.0
"""Seconds of steps after which an estimate is trusted."""
_LAST_CHANCE = 110.0
"""Seconds of steps after which nobody is told any more."""


def cost_noted(report: Reporter, place: str, shorter: Sequence[str]) -> Reporter:
    """A reporter that hands all events on to `report`, and adds a note where a stage takes more than ten minutes.

    Args:
        report: receives the events.
        place: where the stage runs, such as ``CPU``.
        shorter: what makes it shorter, such as ``a smaller --num-steps``.
    """
    pace, is_over = Pace(), False

    def noting(event: Event) -> None:
        nonlocal pace, is_over
        report(event)
        if isinstance(event, StageStarted):
            pace, is_over = Pace(), False
        if is_over or not isinstance(event, Paced):
            return
        pace.update(time.monotonic(), event.done, event.share, event.found)
        left = pace.estimate(_CONFIDENT)
        if left is None:
            return
        is_over = left > LONG or pace.seconds_watched > _LAST_CHANCE
        if left > LONG:
            report(Note(f"about {in_words(left)} on this {place}; {_listed(shorter)} makes it shorter."))

    return noting


def in_words(seconds: float) -> str:
    """Up to two units that a person would say, e.g. ``2 days 6 hours`` or ``40 seconds``."""
    if seconds < 59.5:
        return _joined((max(1, round(seconds)), "second"))
    minutes = round(seconds / 60)
    hours = round(minutes / 60)
    if hours >= 24:
        return _joined((hours // 24, "day"), (hours % 24, "hour"))
    if minutes >= 60:
        minutes = 5 * round(minutes / 5)
        return _joined((minutes // 60, "hour"), (minutes % 60, "minute"))
    return _joined((minutes, "minute"))


def _joined(*counts: tuple[int, str]) -> str:
    return " ".join(f"{count} {unit}{'' if count == 1 else 's'}" for count, unit in counts if count)


def _listed(things: Sequence[str]) -> str:
    *others, last = things
    return f"{', '.join(others)} or {last}" if others else last
