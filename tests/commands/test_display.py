"""What a person sees: a bar on a terminal, plain lines in a pipe; and what Ctrl-C leaves behind."""

from __future__ import annotations

import io
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from genie_cli.commands import display
from genie_cli.runtime.progress import Advanced, Note, Reporter, StageFinished, StageStarted

pty = pytest.importorskip("pty")

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-79]|38;[0-9;]+|4[0-79]|48;[0-9;]+|9[0-7])m")
"""An escape code that sets a colour, not one that moves the cursor or dims."""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def as_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make standard output and error an 80-column terminal with colours."""
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    return stream


def as_pipes(monkeypatch: pytest.MonkeyPatch) -> tuple[io.StringIO, io.StringIO]:
    """Make standard output and error pipes."""
    streams = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stdout", streams[0])
    monkeypatch.setattr("sys.stderr", streams[1])
    return streams


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(display.time, "monotonic", lambda: self.now)


def run_stage(report: Reporter, detail: str = "unit 3/12 layer1.0.conv1") -> None:
    report(StageStarted("quantize", 240000))
    for done in (10, 20, 30):
        time.sleep(0.1)  # the bar is drawn ten times a second
        report(Advanced("quantize", done, detail, {"loss": 0.0012345}))
    time.sleep(0.15)
    report(StageFinished("quantize"))


def plain(text: str) -> str:
    return ESCAPE.sub("", text)


def test_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = as_terminal(monkeypatch)
    with display.progress() as report:
        run_stage(report)
    assert "━" in terminal.getvalue()
    assert COLOR.search(terminal.getvalue())


def test_bar_gives_way_to_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = as_terminal(monkeypatch)
    with display.progress() as report:
        run_stage(report)
    drawn = plain(terminal.getvalue())
    assert re.search(r"━ +30/240000 unit 3/12 layer1.0.conv1 loss 0.001234 [\d.]+/s 0:\d\d:\d\d", drawn)
    assert "…" not in drawn
    assert max(len(line) for line in re.split(r"[\r\n]+", drawn)) <= 80


def test_square_brackets_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = as_terminal(monkeypatch)
    with display.progress() as report:
        run_stage(report, detail="unit [/bold] [0]")
    assert "unit [/bold] [0]" in plain(terminal.getvalue())


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = as_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    with display.progress() as report:
        run_stage(report)
    display.note("careful", warning=True)
    display.rows_table("Rows", ["a"], [[1]])
    assert "30/240000" in plain(terminal.getvalue())
    assert not COLOR.search(terminal.getvalue())


def test_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = as_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with display.progress() as report:
        run_stage(report)
    assert terminal.getvalue().startswith("quantize: 240000 steps\n")
    assert "\x1b" not in terminal.getvalue()


def test_pipe_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout, stderr = as_pipes(monkeypatch)
    clock = Clock(monkeypatch)
    with display.progress() as report:
        report(StageStarted("quantize", 1000))
        for done in range(100, 1001, 100):
            clock.now += 6
            report(Advanced("quantize", done, "unit 1/2 [fc]", {"loss": 0.25}))
        report(Note("a detail"))
        report(Note("a danger", warning=True))
        clock.now += 65
        report(StageFinished("quantize"))
    assert stderr.getvalue().splitlines() == [
        "quantize: 1000 steps",
        "quantize: 200/1000 unit 1/2 [fc] loss 0.25 16.7 steps/s 48 s left",
        "quantize: 400/1000 unit 1/2 [fc] loss 0.25 16.7 steps/s 36 s left",
        "quantize: 600/1000 unit 1/2 [fc] loss 0.25 16.7 steps/s 24 s left",
        "quantize: 800/1000 unit 1/2 [fc] loss 0.25 16.7 steps/s 12 s left",
        "quantize: 1000/1000 unit 1/2 [fc] loss 0.25 16.7 steps/s 0.0 s left",
        "Note: a detail",
        "Warning: a danger",
        "quantize: done in 2 min 05 s",
    ]
    assert stdout.getvalue() == ""


def test_piped_tables_are_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout, _ = as_pipes(monkeypatch)
    long = "layer." * 60
    display.summary("sets[1].safetensors", {"kind [/]": "images", "config": long})
    display.rows_table("Rows [a]", ["name", "bits"], [["conv1", 8], ["[red]fc", 12], [None, 4]], {"bits"})
    assert stdout.getvalue().splitlines() == [
        "sets[1].safetensors",
        "kind [/]  images",
        f"config    {long}",
        "Rows [a]",
        "name     bits",
        "conv1       8",
        "[red]fc    12",
        "            4",
    ]


def test_tables_fit_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = as_terminal(monkeypatch)
    display.rows_table("Rows", ["name", "bits"], [["layer." * 60, 8]], {"bits"})
    lines = plain(terminal.getvalue()).splitlines()
    assert max(map(len, lines)) <= 80
    assert "┃" in lines[2]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (5016, "5.02 kB"), (54203, "54.2 kB"), (999_499, "999 kB"),
     (999_500, "1.00 MB"), (123_456_789, "123 MB"), (2 * 10**9, "2.00 GB"), (5 * 10**15, "5000 TB")],
)  # fmt: skip
def test_file_size(num_bytes: int, text: str) -> None:
    assert display.file_size(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (10, "10 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3600, "1 h 00 min"),
     (7325, "2 h 02 min"), (90000, "25 h 00 min")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert display.duration(seconds) == text


def test_commands_in_a_pipe_write_plain_lines(genie: Any, images: Path, quantized: Path) -> None:
    for arguments in (
        ["synthesize", "--model", "digits_resnet", "--n", 4, "--num-steps", 1, "--out", "new.safetensors"],
        ["quantize", "--model", "digits_resnet", "--images", images, "--preset", "minmax"],
        ["evaluate", "--model", "digits_resnet", "--data", "digits", "--quantized", quantized, "--out", "m.json"],
        ["inspect", "digits_resnet"],
        ["inspect", images],
        ["inspect", quantized],
        ["report", "m.json"],
        ["models"],
    ):
        result = genie(*arguments)
        for text in (result.stdout, result.stderr):
            assert "\x1b" not in text
            assert "\r" not in text
            assert not set(text) & set("━┃│┏╭")
        assert result.stdout


def test_interrupt_leaves_only_what_the_next_run_goes_on_from(tree: Any) -> None:
    """On a pseudo-terminal: a bar, then Ctrl-C; the old output stays as it was."""
    old = Path("images.safetensors")
    old.write_bytes(b"old")
    before = tree(Path.cwd())
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "genie_cli", "synthesize", "--model", "digits_resnet", "--n", "4",
         "--num-steps", "10000000", "--log", "log.csv"],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "PYTHONFAULTHANDLER": "1"},
        preexec_fn=_take_terminal,
    )  # fmt: skip
    os.close(theirs)
    shown = ""
    try:
        shown = _read_until(ours, r"\d\d/10000000")  # it is learning, with all that the first step loads behind it
        assert process.poll() is None, shown
        os.write(ours, b"\x03")
        shown += _read_until(ours, None)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # shows where it hangs
            shown += _read_until(ours, None)
        assert process.wait() == 130, plain(shown)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert "━" in shown
    assert "Traceback" not in shown
    last = plain(shown).replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("Interrupted: 0 of 1 batches are kept; the same command goes on.")
    assert shown.count("Interrupted") == 1
    after = tree(Path.cwd())
    assert {path: after[path] for path in before} == before
    assert all(".genie-work" in str(path) for path in after.keys() - before.keys()), sorted(after)


def _take_terminal() -> None:
    """In the child: make the pseudo-terminal its own, so that a typed Ctrl-C reaches it."""
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and their children, ignore it
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read_until(terminal: int, pattern: str | None, seconds: float = 120) -> str:
    """What the terminal shows until `pattern` appears, or to its end."""
    shown, end = b"", time.monotonic() + seconds
    while time.monotonic() < end and (pattern is None or not re.search(pattern, plain(shown.decode(errors="replace")))):
        ready, _, _ = select.select([terminal], [], [], 0.5)
        try:
            piece = os.read(terminal, 65536) if ready else b""
        except OSError:  # Linux: the other side is closed
            break
        if ready and not piece:
            break
        shown += piece
    return shown.decode(errors="replace")
