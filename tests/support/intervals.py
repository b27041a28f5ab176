"""Intervals and sizes that the library fixes, set to what a test can afford."""

from __future__ import annotations

import pytest

from genie_cli.quantization import calibration, reconstruction, unit_step
from genie_cli.runtime import determinism
from genie_cli.synthesis import distill

NEVER = 10**9


def log_every(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Log, and offer a checkpoint, every so many steps of a unit or a batch."""
    monkeypatch.setattr(reconstruction, "LOG_EVERY", steps)
    monkeypatch.setattr(distill, "LOG_EVERY", steps)


def record_from(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Record the steps of a unit where it takes at least so many of a kind."""
    monkeypatch.setattr(unit_step, "RECORD_FROM", steps)


def mask_pool(monkeypatch: pytest.MonkeyPatch, numel: int) -> None:
    """Draw masks from a pool of so many elements."""
    monkeypatch.setattr(determinism, "MASK_POOL", numel)


def calibration_samples(monkeypatch: pytest.MonkeyPatch, numel: int) -> None:
    """Let the search of a step size compare so many values per site."""
    monkeypatch.setattr(calibration, "_SAMPLES", numel)
