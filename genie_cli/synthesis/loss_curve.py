"""The loss curve of a synthesis: rows that are shown, kept with a batch, and written as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from genie_cli.runtime.work import Saved


@dataclass(frozen=True)
class LogRow:
    """One logged step: batch and step count from 1."""

    batch: int
    step: int
    loss: float
    latent_lr: float


def rows_as_facts(rows: Sequence[LogRow]) -> dict[str, Any]:
    """Rows as the facts of a part or a checkpoint."""
    return {"log": [astuple(row) for row in rows]}


def saved_rows(saved: Saved) -> list[LogRow]:
    """Rows from the facts of a part or a checkpoint."""
    return [LogRow(*row) for row in saved.facts["log"]]
