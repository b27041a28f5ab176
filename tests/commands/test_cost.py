"""Whoever starts something long is told so before the second minute, once, with what makes it shorter."""

from __future__ import annotations

import pytest

from genie_cli.commands import cost
from genie_cli.commands.cost import cost_noted, in_words
from genie_cli.runtime.progress import Advanced, Event, Note, Paced, Reporter, StageStarted


class Watched:
    """A stage that steps under a clock, behind `cost_noted`; `shown` has what came through, and `notes` when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, total: int, shorter: tuple[str, ...] = ("--a", "--b")) -> None:
        self.now, self.total, self.shown, self.notes = 0.0, total, list[Event](), dict[float, str]()
        monkeypatch.setattr(cost.time, "monotonic", lambda: self.now)
        self.report: Reporter = cost_noted(self._show, "CPU", shorter)
        self.report(StageStarted("synthesize", total))

    def _show(self, event: Event) -> None:
        self.shown.append(event)
        if isinstance(event, Note):
            self.notes[self.now] = event.message

    def step(self, done: int, found: bool = False) -> None:
        self.report(Paced("synthesize", done, done / self.total, found))

    def run(self, seconds: float, until: float, done: int = 0) -> None:
        """Take steps of so many seconds, until the clock has advanced so far."""
        self.step(done, found=True)
        end = self.now + until
        while self.now < end and done < self.total:
            self.now += seconds
            done += 1
            self.step(done)


def test_days_are_said_early_and_once(monkeypatch: pytest.MonkeyPatch):
    watched = Watched(monkeypatch, 32000)
    watched.run(5.5, until=3000)
    ((when, message),) = watched.notes.items()
    assert when < 20
    assert message == "about 2 days 1 hour on this CPU; --a or --b makes it shorter."


@pytest.mark.parametrize("seconds", [0.2, 1, 9, 25, 60, 100])
def test_it_is_said_before_the_second_minute(monkeypatch: pytest.MonkeyPatch, seconds: float):
    watched = Watched(monkeypatch, 100_000)
    watched.run(seconds, until=1000)
    assert [when <= 110 for when in watched.notes] == [True]


@pytest.mark.parametrize(("total", "is_long"), [(550, False), (700, True)])
def test_short_stages_say_nothing(monkeypatch: pytest.MonkeyPatch, total: int, is_long: bool):
    watched = Watched(monkeypatch, total)
    watched.run(1.0, until=total)
    assert bool(watched.notes) == is_long


def test_nobody_is_told_in_the_middle(monkeypatch: pytest.MonkeyPatch):
    watched = Watched(monkeypatch, 4000)
    watched.run(0.1, until=150)
    watched.run(10, until=1000, done=1500)
    assert watched.notes == {}


def test_after_a_resume_it_is_what_is_left(monkeypatch: pytest.MonkeyPatch):
    watched = Watched(monkeypatch, 10000)
    watched.run(1.0, until=60, done=8000)
    assert list(watched.notes.values()) == ["about 33 minutes on this CPU; --a or --b makes it shorter."]


def test_a_first_step_that_is_slow_once_is_not_multiplied(monkeypatch: pytest.MonkeyPatch):
    """Kernels are made in it."""
    watched = Watched(monkeypatch, 400)
    watched.step(0, found=True)
    watched.now += 25
    watched.run(1.0, until=100, done=1)
    assert watched.notes == {}


def test_every_event_comes_through(monkeypatch: pytest.MonkeyPatch):
    watched = Watched(monkeypatch, 10)
    events = [Paced("synthesize", 1, 0.1), Advanced("synthesize", 1), Note("a detail")]
    for event in events:
        watched.report(event)
    assert watched.shown[1:] == events


def test_one_thing_that_makes_it_shorter(monkeypatch: pytest.MonkeyPatch):
    watched = Watched(monkeypatch, 10000, ("a GPU",))
    watched.run(1.0, until=30)
    assert list(watched.notes.values()) == ["about 2 hours 45 minutes on this CPU; a GPU makes it shorter."]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 second"), (41.3, "41 seconds"), (59.4, "59 seconds"), (59.6, "1 minute"), (620, "10 minutes"),
     (3570, "1 hour"), (3600, "1 hour"), (12000, "3 hours 20 minutes"), (86400, "1 day"),
     (90000, "1 day 1 hour"), (194_400, "2 days 6 hours"), (86_000, "1 day"), (1e7, "115 days 18 hours")],
)  # fmt: skip
def test_words(seconds: float, words: str):
    assert in_words(seconds) == words
