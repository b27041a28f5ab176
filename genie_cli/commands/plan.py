"""``--dry-run``: the plan of a command, what it takes, and what it would write; nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
import typer

from genie_cli.commands.display import file_size, summary
from genie_cli.commands.running import CommandRun
from genie_cli.config import LongStage, Stage
from genie_cli.runtime.arithmetic import ChosenArithmetic
from genie_cli.runtime.arithmetic_speed import Passes
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.work import Work
from genie_cli.work.room import DiskNeed


class Planned(Exception):
    """The work would begin now."""


class PlannedRun(CommandRun):
    """A run that makes all checks and ends where the work would begin, with what is known of it by then."""

    facts: dict[str, Any]
    need: DiskNeed | None = None
    parts: tuple[int, str] | None = None

    def planned(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """See `Run.planned`."""
        self.facts = {**getattr(self, "facts", {}), **facts()}

    def decide_arithmetic(
        self,
        config: Stage,
        passes: Passes,
        unsupported: Callable[[RunContext], str | None],
        is_unfinished: Callable[[torch.dtype], bool] = lambda dtype: False,
    ) -> None:
        """Nothing is measured: what is not asked for is planned as float32, which takes the most room."""
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self._arithmetic = ChosenArithmetic(dtype, f"--precision {config.precision}")
        self.planned(lambda: {"precision": config.precision})

    def keeping(
        self, config: LongStage, out: Path, determinants: Mapping[str, Any], need: DiskNeed, parts: tuple[int, str]
    ) -> NoReturn:
        """The end, once it is known that the disks have room."""
        self.need, self.parts = need, parts
        self.check_room(out, need)
        raise Planned

    def working(self, work: Work, shorter: Sequence[str] = ()) -> NoReturn:
        """The end."""
        raise Planned


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
    plan: dict[str, Any] = {"dry_run": True, **getattr(run, "facts", {}), "device": str(run.device)}
    if run.need is not None:
        plan["disk_bytes"] = {"beside_output": run.need.beside_output, "temporary": run.need.temporary}
    plan["would_write"] = written
    if as_json:
        typer.echo(json.dumps(plan, indent=2))
        return
    rows = {key.replace("_", " "): _cell(key, value) for key, value in plan.items() if key not in _OWN_ROWS}
    if run.need is not None:
        rows["disk"] = f"at most {file_size(run.need.beside_output)} beside the output while it works"
        if run.need.temporary:
            rows["disk"] += f", {file_size(run.need.temporary)} of temporary files"
    rows["time"] = "told after the first steps of the run itself"
    rows["would write"] = ", ".join(written) or "nothing"
    summary("Plan; nothing was written", rows)


_OWN_ROWS = ("dry_run", "disk_bytes", "would_write")


def _cell(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return f"at most {file_size(value)}"
    return f"{value:,}" if isinstance(value, int) else ", ".join(value) if isinstance(value, list) else str(value)
