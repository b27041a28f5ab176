"""The figures of reconstruction units in the metrics of a quantized folder, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from genie_cli.artifacts.metadata import validate


class UnitFigures(BaseModel):
    """One unit, as ``metrics.json`` of a quantized folder has it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    layers: tuple[str, ...]
    """Its weight layers."""
    num_steps: int = Field(0, ge=0)
    relative_error: float | None
    """Squared error at its output over the teacher's own squared norm; None: not a finite number."""
    held_out_error: float | None = None
    """The same over images that were not trained on; None where there are none."""

    @property
    def error(self) -> float | None:
        """The error on held-out images, else on those that were trained on."""
        return self.relative_error if self.held_out_error is None else self.held_out_error


class _Units(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    units: tuple[UnitFigures, ...] = ()


def read_units(metrics: Mapping[str, Any], path: Path) -> tuple[UnitFigures, ...]:
    """The units, front to back; none where the network was quantized without images.

    Args:
        metrics: content of the file.
        path: names it in messages.

    Raises:
        InputError: a unit that cannot be read.
    """
    return validate(_Units, metrics, path).units


def described_errors(units: Sequence[Any]) -> str:
    """The mean error and the worst unit, such as ``mean 0.0120, worst 0.0510 (layer3.0)``.

    Args:
        units: objects with `name`, `relative_error` and `held_out_error`; at least one.
    """
    told = []
    for kind, field in (("", "relative_error"), (" held out", "held_out_error")):
        known = [(getattr(unit, field), unit.name) for unit in units if getattr(unit, field) is not None]
        if known:
            worst, name = max(known)
            mean = sum(error for error, _ in known) / len(known)
            told.append(f"mean {mean:.4f}{kind}, worst {worst:.4f} ({name or 'the network'})")
    return "; ".join(told) or "none measured"
