"""The curves of a chart: as many as it has lines for, each of a few hundred points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from genie_cli.report import charts


def num_drawn(curves: Mapping[Any, Any]) -> int:
    """Curves of a chart that are drawn."""
    return min(len(curves), charts.MOST_CURVES)


def thinned(rows: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """A curve of a few hundred points; the last one stays."""
    every = max(1, math.ceil(len(rows) / 200))
    return rows[::-1][::every][::-1]


def first_of(curves: Mapping[str, Any]) -> str:
    """Words behind a caption where not all curves are drawn."""
    shown = num_drawn(curves)
    return f" (the first {shown} of {len(curves)})" if shown < len(curves) else ""
