"""Sizes and counts that the library fixes, set to what a test can afford."""

from __future__ import annotations

import pytest

from genie_cli.quantization.activations import step_sizes
from genie_cli.runtime import determinism, repeated_step

NEVER = 10**9


def record_from(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Record a step that will be called at least so often."""
    monkeypatch.setattr(repeated_step, "RECORD_FROM", calls)


def mask_pool(monkeypatch: pytest.MonkeyPatch, numel: int) -> None:
    """Draw masks from a pool of so many elements."""
    monkeypatch.setattr(determinism, "MASK_POOL", numel)


def calibration_samples(monkeypatch: pytest.MonkeyPatch, numel: int) -> None:
    """Let the search of a step size compare so many values per site."""
    monkeypatch.setattr(step_sizes, "_SAMPLES", numel)
