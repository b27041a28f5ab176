"""The pace of a stage: its rate, and the time that is left."""

from __future__ import annotations

from typing import NamedTuple

_LATE = 30.0
"""Seconds of work after which an estimate from its first unit alone is trusted."""


class _Mark(NamedTuple):
    """A moment: seconds on a clock, units of work and share of the work that this run has done until then."""

    seconds: float
    done: float
    share: float


class Pace:
    """Looks at a stage's progress, and finds out how fast its work is done.

    The work of an earlier run does not count, nor does the time before the first unit of work is done: what is prepared
    before it, and its own first-time costs.
    """

    def __init__(self) -> None:
        """A stage that has not begun."""
        self._found_done = self._found_share = 0.0
        self._start: _Mark | None = None
        """The newest moment before this run's first unit of work was done."""
        self._first: _Mark | None = None
        """The moment when it was done."""
        self._now: _Mark | None = None

    def update(self, seconds: float, done: float, share: float, found: bool = False) -> None:
        """Take in a moment.

        Args:
            seconds: the time on a clock.
            done: units of work done so far.
            share: the same as a share of the stage's cost, 0 to 1.
            found: what came since the last moment was done by an earlier run.
        """
        before = self._now or _Mark(seconds, 0.0, 0.0)
        if found:
            self._found_done, self._found_share = done - before.done, share - before.share
        now = _Mark(seconds, done - self._found_done, share - self._found_share)
        if now.share < before.share or now.share <= 0:  # before the first unit of work, or a part that starts anew
            self._start, self._first = now, None
        elif self._first is None and now.share > before.share:
            self._start, self._first = self._start or before, now
        self._now = now

    @property
    def rate(self) -> float | None:
        """Units of work per second; None before the second one is done."""
        since = self._since_first()
        return since.done / since.seconds if since is not None else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest of the work takes at this pace; None before the second unit of work is done."""
        since = self._since_first()
        return self._rest / since.share * since.seconds if since is not None else None

    @property
    def rough_seconds_left(self) -> float | None:
        """The same from the first unit of work alone, with what it costs once; None before it is done."""
        if self._start is None or self._first is None:
            return None
        share = self._first.share - self._start.share
        return self._rest / share * (self._first.seconds - self._start.seconds)

    def estimate(self, after: float) -> float | None:
        """Seconds that the rest takes, once that can be trusted; None until then.

        Args:
            after: seconds of work after which it can be; where they are too few for a second unit of work, the
                first one alone is trusted after `_LATE` seconds.
        """
        left = self.seconds_left
        if left is None and self.seconds_watched >= _LATE:
            left = self.rough_seconds_left
        return left if self.seconds_watched >= after else None

    @property
    def seconds_watched(self) -> float:
        """Seconds since this run began to do work."""
        return self._now.seconds - self._start.seconds if self._now is not None and self._start is not None else 0.0

    @property
    def _rest(self) -> float:
        return 1 - self._found_share - self._now.share if self._now is not None else 1.0

    def _since_first(self) -> _Mark | None:
        if self._first is None or self._now is None or self._now.share <= self._first.share:
            return None
        seconds = max(self._now.seconds - self._first.seconds, 1e-9)
        return _Mark(seconds, self._now.done - self._first.done, self._now.share - self._first.share)
