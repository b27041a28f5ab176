"""The display of a running stage: a bar on a terminal, a plain line now and then when piped."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text

from genie_cli.commands.pace import Pace
from genie_cli.commands.verbosity import is_quiet, is_verbose
from genie_cli.runtime.progress import Advanced, Event, Note, Paced, Reporter, StageFinished, StageStarted
from genie_cli.sizes import file_size as file_size

if TYPE_CHECKING:
    from genie_cli.artifacts.images import ImageSet
    from genie_cli.data.samples import Samples
    from genie_cli.models.teacher import Teacher

_LINE_EVERY, _LINE_EVERY_VERBOSE = 10.0, 1.0
"""Seconds between plain lines; the same with ``--verbose``."""
_SHORTEST_BAR, _LONGEST_BAR, _BESIDE_BAR = 1, 40, 80
"""Columns of a bar, and those that are left to the text beside it as long as there are so many."""
_PIPED_WIDTH = 100_000
"""Columns of a table that is piped: nothing is folded."""


class _DetailColumn(ProgressColumn):
    """The place of the work and its figures; what does not fit into the line is left out."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["detail"], no_wrap=True, overflow="ellipsis")


class _PaceColumn(ProgressColumn):
    """The rate of the work and the time that is left, from the second unit of work on."""

    def render(self, task: Task) -> Text:
        pace, noun = task.fields["pace"], task.fields["noun"]
        return Text(_pace(pace, "/s", noun, _clock), style="dim")


class _Stages:
    """The stages that are shown, each with its total, its noun and its pace."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[StageStarted, Pace]] = {}
        self._paced: set[str] = set()
        """Stages that tell the pace of their work by itself."""

    def start(self, event: StageStarted) -> Pace:
        """A stage begins."""
        pace = Pace()
        self._known[event.stage] = event, pace
        return pace

    def find(self, event: Advanced | Paced) -> tuple[StageStarted, Pace]:
        """The stage of an event, which its pace takes in."""
        started, pace = self._known[event.stage]
        now = time.monotonic()
        if isinstance(event, Paced):
            self._paced.add(event.stage)
            pace.update(now, event.done, event.share, event.found)
        elif event.stage not in self._paced:
            pace.update(now, event.done, event.done / started.total if started.total else 1.0)
        return started, pace


@contextmanager
def progress() -> Iterator[Reporter]:
    """A reporter for one stage; progress goes to stderr, results stay on stdout."""
    console = Console(stderr=True)
    if is_quiet():
        yield _warnings_alone
        return
    if not console.is_interactive:
        yield _plain_lines(console)
        return
    columns = (  # on a narrow terminal the bar and the detail give way; stage, count, rate and time stay
        TextColumn("{task.description}"),
        BarColumn(bar_width=max(_SHORTEST_BAR, min(_LONGEST_BAR, console.width - _BESIDE_BAR))),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        _DetailColumn(table_column=Column(no_wrap=False)),
        _PaceColumn(table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        stages, tasks = _Stages(), dict[str, TaskID]()

        def report(event: Event) -> None:
            if isinstance(event, StageStarted):
                pace = stages.start(event)
                tasks[event.stage] = bar.add_task(event.stage, total=event.total, detail="", pace=pace, noun=event.noun)
            elif isinstance(event, Advanced | Paced):
                stages.find(event)
                bar.update(tasks[event.stage], completed=event.done)
                if isinstance(event, Advanced):
                    bar.update(tasks[event.stage], detail=_detail(event))
            elif isinstance(event, Note):
                bar.console.print(_note(event))

        yield report


def _warnings_alone(event: Event) -> None:
    if isinstance(event, Note):
        note(event.message, event.warning)


def _plain_lines(console: Console) -> Reporter:
    stages, details = _Stages(), dict[str, str]()
    started = last = time.monotonic()

    def line(text: str) -> None:
        with suppress(OSError):  # a log on a full disk shall not end the work
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    def report(event: Event) -> None:
        nonlocal last, started
        if isinstance(event, StageStarted):
            stages.start(event)
            started = last = time.monotonic()
            line(f"{event.stage}: {event.noun if event.total is None else f'{event.total} {event.noun}'}")
        elif isinstance(event, Advanced | Paced):
            stage, pace = stages.find(event)
            if isinstance(event, Advanced):
                details[event.stage] = _detail(event)
            if time.monotonic() - last >= (_LINE_EVERY_VERBOSE if is_verbose() else _LINE_EVERY):
                last = time.monotonic()
                parts = (details.get(event.stage, ""), _left(pace, stage.noun))
                done = event.done if stage.total is None else f"{event.done}/{stage.total}"
                line(f"{event.stage}: {done} {' '.join(filter(None, parts))}".rstrip())
        elif isinstance(event, StageFinished):
            line(f"{event.stage}: done in {duration(time.monotonic() - started)}")
        elif isinstance(event, Note):
            line(_note(event).plain)

    return report


def _detail(event: Advanced) -> str:
    return " ".join(filter(None, (event.detail, _figures(event.values))))


def _left(pace: Pace, noun: str) -> str:
    return _pace(pace, f" {noun}/s", noun, lambda seconds: f"{duration(seconds)} left")


def _pace(pace: Pace, per_second: str, noun: str, time_left: Callable[[float], str]) -> str:
    """Rate and time left, once they are known; a slow rate as the time of one unit of work."""
    rate, left = pace.rate, pace.seconds_left
    if not rate or left is None:
        return ""
    shown = f"{rate:.1f}{per_second}" if rate >= 1 else f"{1 / rate:.1f} s/{noun.removesuffix('s')}"
    return f"{shown} {time_left(left)}"


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds, e.g. ``0:02:05``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def note(message: str, warning: bool = False) -> None:
    """One line on stderr."""
    if is_quiet() and not warning:
        return
    with suppress(OSError):
        Console(stderr=True).print(_note(Note(message, warning)), soft_wrap=True)


def tell_of(taken: Teacher | Samples | ImageSet) -> None:
    """The notes and warnings on how a network or images were taken, one line each on stderr."""
    for warning, messages in ((False, taken.notes), (True, taken.warnings)):
        for message in messages:
            note(message, warning)


def _note(event: Note) -> Text:
    return Text(f"{'Warning' if event.warning else 'Note'}: {event.message}", style="yellow" if event.warning else "")


def _figures(values: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())


def duration(seconds: float) -> str:
    """Two figures and their units, e.g. ``2 min 05 s``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24:02d} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def summary(title: str, rows: Mapping[str, Any]) -> None:
    """A closing two-column table on stdout."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(Text(key), Text(str(value)))
    _print(title, table)


def rows_table(title: str, columns: list[str], rows: list[list[Any]], right: set[str] | None = None) -> None:
    """A table on stdout."""
    table = Table()
    for column in columns:
        table.add_column(column, justify="right" if column in (right or set()) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    _print(title, table)


def _print(title: str, table: Table) -> None:
    """Print a frame as wide as the terminal; piped, one plain line per row, so that grep and awk can read it."""
    console = Console()
    if console.is_terminal:
        console.print(Text(title, style="bold"))
        console.print(table)
        return
    table.box, table.pad_edge = None, False
    lines = io.StringIO()
    Console(file=lines, width=_PIPED_WIDTH, color_system=None).print(table)
    typer.echo("\n".join([title, *(line.rstrip() for line in lines.getvalue().splitlines())]))
