"""The course of a unit's loss: rows that are kept with the unit, and written as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from genie_cli.runtime.work import Saved


@dataclass(frozen=True)
class LossRow:
    """One logged step of a unit.

    Attributes:
        step: counted from 1.
        loss: reconstruction loss of the step's batch, without the rounding regularizer; of the first process.
        held_out_loss: loss of the held-out images with finished integers; None: it was not measured at this step.
    """

    step: int
    loss: float
    held_out_loss: float | None


def rows_as_facts(rows: Sequence[LossRow]) -> dict[str, Any]:
    """Rows as the facts of a part or a checkpoint."""
    return {"log": [astuple(row) for row in rows]}


def saved_rows(saved: Saved) -> list[LossRow]:
    """Rows from the facts of a part or a checkpoint; none where an earlier genie kept none."""
    return [LossRow(*row) for row in saved.facts.get("log", ())]


def behind(rows: Sequence[LossRow], num_steps: int) -> tuple[LossRow, ...]:
    """Rows of a part that begins after so many steps of its unit."""
    return tuple(replace(row, step=row.step + num_steps) for row in rows)
