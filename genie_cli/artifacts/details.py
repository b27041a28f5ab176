"""Distributions and curves of a quantized network, for a report: ``details.json`` of its folder.

``metrics.json`` holds the figures that runs are compared by. This file is bounded in size, and like the other files it
holds neither time, host nor path. A folder of an earlier genie has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from genie_cli.artifacts.metadata import DETAILS_FILE, validate
from genie_cli.artifacts.metrics import read_metrics
from genie_cli.config import Frozen

NUM_BINS = 64
MOST_ENTRIES = 400
"""Layers, units and curves that are kept at most."""
MOST_POINTS = 100
"""Points of a curve that are kept at most."""

Counts = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=4096)]


class Histograms(Frozen):
    """Values before and after quantization, counted in bins of equal width over their common range."""

    low: float
    """Left end of the first bin."""
    high: float
    """Right end of the last bin."""
    before: Counts
    after: Counts


class Details(Frozen):
    """The content of ``details.json``."""

    format_version: int = 1
    weights: dict[str, Histograms] = Field(default_factory=dict)
    """Layer -> its weight in float, batch norms folded, and with quantized values."""
    activations: dict[str, Histograms] = Field(default_factory=dict)
    """Unit -> its output in the network in float, and in the quantized one, on some calibration images."""
    losses: dict[str, tuple[tuple[int, float | None, float | None], ...]] = Field(default_factory=dict)
    """Unit -> step, loss and held-out loss, at most `MOST_POINTS` rows."""


def histograms_of(before: Tensor, after: Tensor) -> Histograms:
    """Count finite values of any shapes over the range that holds them all."""
    values = [tensor.detach().float().flatten().cpu() for tensor in (before, after)]
    low = min(float(value.min()) for value in values)
    high = max(float(value.max()) for value in values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = [tuple(map(int, torch.histc(value, NUM_BINS, low, high).tolist())) for value in values]
    return Histograms(low=low, high=high, before=counts[0], after=counts[1])


def thinned(rows: Sequence[tuple[int, float, float | None]]) -> tuple[tuple[int, float | None, float | None], ...]:
    """Rows of a curve, evenly left out where there are too many; the last one stays."""
    every = max(1, math.ceil(len(rows) / MOST_POINTS))
    kept = list(rows[::-1][::every])[::-1]
    return tuple((step, _finite(loss), _finite(held_out)) for step, loss, held_out in kept)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def bounded(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The first entries, no more than `MOST_ENTRIES`."""
    return dict(list(entries.items())[:MOST_ENTRIES])


def read_details(folder: Path) -> Details | None:
    """The details of a quantized folder; None: an earlier genie wrote it.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / DETAILS_FILE
    return validate(Details, read_metrics(path), path) if path.is_file() else None
