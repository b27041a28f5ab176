"""``--dry-run``: the plan of a command, what it takes, and what it would write; nothing is written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer

from genie_cli.commands.cost import in_words
from genie_cli.commands.display import file_size, progress, summary
from genie_cli.commands.pace import Pace
from genie_cli.commands.running import CommandRun
from genie_cli.config import LongStage
from genie_cli.runtime.arithmetic import dtype_name
from genie_cli.runtime.progress import Advanced, Event, Paced, Reporter, StageStarted
from genie_cli.runtime.work import NO_WORK, Work
from genie_cli.work.room import DiskNeed

_WATCHED = 5.0
"""Seconds of steps after which an estimate is taken."""


class Planned(Exception):
    """All is known of the work that a plan tells."""


class PlannedRun(CommandRun):
    """A run that makes all checks and ends after the first steps of the work, with what is known of it by then.

    Attributes:
        need: the room on disks; None: nobody asked.
        part: the part of the work that was watched; None: no work began.
        estimate: seconds that this part takes, with what is prepared before it; None: not known.
    """

    need: DiskNeed | None = None
    part: str | None = None
    estimate: float | None = None
    _facts: Mapping[str, Any] = MappingProxyType({})

    @property
    def facts(self) -> dict[str, Any]:
        """Facts that the stage knew of the work, name -> plain value."""
        arithmetic = {} if self._arithmetic is None else {"precision": dtype_name(self.dtype)}
        return {**self._facts, **arithmetic}

    def planned(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """See `Run.planned`."""
        self._facts = {**self._facts, **facts()}

    @contextmanager
    def keeping(
        self, config: LongStage, out: Path, determinants: Mapping[str, Any], need: DiskNeed, parts: tuple[int, str]
    ) -> Iterator[Work]:
        """Nothing is kept: the work does not come to its end."""
        self.need = need
        self.check_room(out, need)
        yield NO_WORK

    @contextmanager
    def reporting(self, shorter: Sequence[str]) -> Iterator[Reporter]:
        """Around the first steps of the work, by which a run of one process finds out how long all of them take."""
        if self.workers.size > 1:  # one that ends leaves the others waiting for it
            raise Planned
        with progress() as report:
            yield self._watched(report)
        self.estimate = self.seconds
        raise Planned

    def _watched(self, report: Reporter) -> Reporter:
        """A reporter that hands events on, and ends the work once its pace is known."""
        pace, total = Pace(), None

        def watching(event: Event) -> None:
            nonlocal total
            report(event)
            if isinstance(event, StageStarted):
                self.part, total = event.stage, event.total
            if isinstance(event, Paced):
                pace.update(time.monotonic(), event.done, event.share, event.found)
                total = None  # a share of the cost says more than a count
            elif isinstance(event, Advanced) and total:
                pace.update(time.monotonic(), event.done, event.done / total)
            else:
                return
            left = pace.estimate(_WATCHED)
            if left is not None:
                self.estimate = self.seconds + left
                raise Planned

        return watching


@contextmanager
def planning(run: CommandRun, outputs: Mapping[str, Path | None], as_json: bool) -> Iterator[None]:
    """Around the stage of a `PlannedRun`, whose plan is printed where the work would begin; other runs pass through.

    Args:
        run: the run.
        outputs: option -> what would be written.
        as_json: print JSON.
    """
    try:
        yield
    except Planned:
        assert isinstance(run, PlannedRun)
        if run.workers.is_first:
            show_plan(run, outputs, as_json)


def show_plan(run: PlannedRun, outputs: Mapping[str, Path | None], as_json: bool) -> None:
    """Print the plan."""
    written = [str(path) for path in outputs.values() if path is not None]
    plan: dict[str, Any] = {"dry_run": True, **run.facts, "device": str(run.device)}
    if run.need is not None:
        plan["disk_bytes"] = {"beside_output": run.need.beside_output, "temporary": run.need.temporary}
    if run.estimate is not None:
        plan["estimated_seconds"] = {run.part: round(run.estimate, 3)}
    plan["would_write"] = written
    if as_json:
        typer.echo(json.dumps(plan, indent=2))
        return
    rows = {key.replace("_", " "): _cell(key, value) for key, value in plan.items() if key not in _OWN_ROWS}
    if run.need is not None:
        rows["disk"] = f"at most {file_size(run.need.beside_output)} beside the output while it works"
        if run.need.temporary:
            rows["disk"] += f", {file_size(run.need.temporary)} of temporary files"
    rows["time"] = _time(run)
    rows["would write"] = ", ".join(written) or "nothing"
    summary("Plan; nothing was written", rows)


_OWN_ROWS = ("dry_run", "disk_bytes", "estimated_seconds", "would_write")


def _time(run: PlannedRun) -> str:
    if run.estimate is None:
        return "told after the first steps of the run itself"
    return f"about {in_words(run.estimate)} ({run.part}), on this machine"


def _cell(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return f"at most {file_size(value)}"
    return f"{value:,}" if isinstance(value, int) else ", ".join(value) if isinstance(value, list) else str(value)
