"""The metrics file of ``genie evaluate``: what it has to hold before a table or a page shows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genie_cli.artifacts.json_kind import WRITERS, json_kind
from genie_cli.artifacts.metrics import read_json
from genie_cli.errors import InputError
from genie_cli.evaluation.keys import CLASSIFICATION, FACTS, HASHES, NUM_BYTES, OUTPUTS, PER_CLASS

DEFAULT_METRIC = "classification"
"""Metric of files that name none."""
_LARGEST = 1e12
"""Largest value that a figure of an evaluation may have."""
_TEXTS = ("model", "metric", "preset", "protocol", *HASHES)


def read_evaluation(path: Path) -> dict[str, Any]:
    """Fields of a metrics file, checked.

    Raises:
        InputError: the file cannot be read, or is none of ``genie evaluate``.
    """
    fields = read_json(path)
    if not isinstance(fields, dict):
        fields = {}
    check_evaluation(fields, path)
    return fields


def check_evaluation(fields: Mapping[str, Any], path: Path) -> None:
    """Refuse fields that no evaluation writes.

    Raises:
        InputError: a figure is missing, or a value is of another kind; the message names it.
    """
    names = figure_names(fields)
    if not names or (metric_of(fields) == DEFAULT_METRIC and fields.get(names[0]) is None):
        kind = json_kind(fields)
        missing = f"'{names[0]}' is missing" if names else "it has no figures"
        if kind not in (None, "evaluation"):
            missing = f"it is {WRITERS[kind]}, which only a page shows (--html FILE)"
        raise InputError(f"{path} holds no metrics of 'genie evaluate': {missing}.")
    for key, value in fields.items():
        if value is not None and not _is_valid(key, value, names):
            raise InputError(f"{path} holds no metrics of 'genie evaluate': its '{key}' is not a valid value.")


def metric_of(fields: Mapping[str, Any]) -> Any:
    """The metric of a metrics file."""
    return fields.get("metric", DEFAULT_METRIC)


def figure_names(fields: Mapping[str, Any]) -> list[str]:
    """The keys of the figures in a metrics file, in the order of tables."""
    if metric_of(fields) == DEFAULT_METRIC:
        return list(CLASSIFICATION)
    others = (*FACTS, NUM_BYTES, *HASHES, PER_CLASS, OUTPUTS)
    return [key for key, value in fields.items() if key not in others and not isinstance(value, list)]


def _is_valid(key: str, value: Any, figures: list[str]) -> bool:
    if key in _TEXTS:
        return isinstance(value, str)
    if key == PER_CLASS:
        return _are_figures(value)
    if key == OUTPUTS:
        return isinstance(value, dict) and all(_are_figures(each) for each in value.values())
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return _is_figure(value) if is_number or key in (*FACTS, NUM_BYTES, *figures) else True


def _are_figures(value: Any) -> bool:
    """True for a mapping from names to figures, of which some may have been no finite number."""
    return isinstance(value, dict) and all(each is None or _is_figure(each) for each in value.values())


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
