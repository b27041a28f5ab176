"""A bar and piped lines show the rate and the time left from the second step on, and whatever an earlier run did."""

from __future__ import annotations

import io
import re
import time

import pytest

from genie_cli.commands import display
from genie_cli.runtime.progress import Advanced, Paced, StageFinished, StageStarted

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that a test sets, and a standard error that is a pipe."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None = None) -> None:
        self.now, self._stream = 1000.0, stream or io.StringIO()
        monkeypatch.setattr(display.time, "monotonic", lambda: self.now)
        monkeypatch.setattr("sys.stderr", self._stream)

    def lines(self) -> list[str]:
        return self._stream.getvalue().splitlines()


def test_lines_have_the_time_left_from_the_second_step_on(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    with display.progress() as report:
        report(StageStarted("synthesize", 1000))
        report(Paced("synthesize", 0, 0.0, found=True))
        for done in (1, 2, 3):
            clock.now += 12
            if done == 3:
                report(Advanced("synthesize", done, "batch 1/8", {"loss": 0.5}))
            report(Paced("synthesize", done, done / 1000))
    assert clock.lines() == [
        "synthesize: 1000 steps",
        "synthesize: 1/1000",
        "synthesize: 2/1000 12.0 s/step 3 h 19 min left",
        "synthesize: 3/1000 batch 1/8 loss 0.5 12.0 s/step 3 h 19 min left",
    ]


def work_of_unknown_length(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> list[str]:
    clock = Clock(monkeypatch, stream)
    with display.progress() as report:
        report(StageStarted("evaluate", None, "images"))
        for done in (8, 16, 24):
            clock.now += 12
            report(Advanced("evaluate", done, values={"top1": 50.0}))
        report(StageFinished("evaluate"))
    return clock.lines()


def test_work_of_unknown_length(monkeypatch: pytest.MonkeyPatch):
    assert work_of_unknown_length(monkeypatch, io.StringIO()) == [
        "evaluate: images",
        "evaluate: 8 top1 50",
        "evaluate: 16 top1 50",
        "evaluate: 24 top1 50",
        "evaluate: done in 36 s",
    ]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    assert "24/?" in "".join(work_of_unknown_length(monkeypatch, Terminal()))


def test_the_figures_of_an_earlier_step_stay(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    with display.progress() as report:
        report(StageStarted("quantize", 100))
        report(Paced("quantize", 0, 0.0, found=True))
        report(Advanced("quantize", 1, "unit 1/2 fc", {"loss": 0.5}))
        for done in (1, 2, 3, 4):
            clock.now += 5
            report(Paced("quantize", done, done / 100))
    assert clock.lines() == [
        "quantize: 100 steps",
        "quantize: 2/100 unit 1/2 fc loss 0.5 5.0 s/step 8 min 10 s left",
        "quantize: 4/100 unit 1/2 fc loss 0.5 5.0 s/step 8 min 00 s left",
    ]


def test_after_a_resume_new_steps_alone_count(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    with display.progress() as report:
        report(StageStarted("synthesize", 1000))
        report(Paced("synthesize", 900, 0.9, found=True))
        for done in range(901, 910):
            clock.now += 4
            report(Paced("synthesize", done, done / 1000))
    lines = clock.lines()
    assert lines[1] == "synthesize: 903/1000 4.0 s/step 6 min 28 s left"
    assert lines[-1] == "synthesize: 909/1000 4.0 s/step 6 min 04 s left"


def test_the_time_left_goes_by_cost(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    with display.progress() as report:
        report(StageStarted("quantize", 100))
        for done in (1, 2):
            clock.now += 10
            report(Paced("quantize", done, done / 20))
    assert clock.lines()[-1] == "quantize: 2/100 10.0 s/step 3 min 00 s left"


def shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch, steps: int) -> str:
    stream = Terminal()
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "80")):
        monkeypatch.setenv(name, value)
    clock = Clock(monkeypatch, stream)
    with display.progress() as report:
        report(StageStarted("synthesize", 32000))
        report(Paced("synthesize", 0, 0.0, found=True))
        for done in range(1, steps + 1):
            clock.now += 60
            report(Paced("synthesize", done, done / 32000))
        time.sleep(0.3)  # the bar is drawn ten times a second
        report(StageFinished("synthesize"))
    return ESCAPE.sub("", stream.getvalue())


def test_a_bar_has_the_time_left_from_the_second_step_on(monkeypatch: pytest.MonkeyPatch):
    assert not re.search(r"\d:\d\d:\d\d", shown_on_a_terminal(monkeypatch, 1))
    assert re.search(r"━ +2/32000 +60\.0 s/step 533:18:00", shown_on_a_terminal(monkeypatch, 2))


@pytest.mark.parametrize(("seconds", "text"), [(172_700, "47 h 58 min"), (172_800, "2 d 00 h"), (200_000, "2 d 07 h")])
def test_long_durations_are_days(seconds: float, text: str):
    assert display.duration(seconds) == text
