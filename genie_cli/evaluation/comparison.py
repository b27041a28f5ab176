"""The table that compares runs: rows from metrics files, written as markdown, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genie_cli.errors import InputError, UsageError

COLUMNS = (
    "scheme", "model", "preset", "protocol", "weight_bits", "activation_bits",
    "top1", "teacher_top1", "drop", "agreement", "top5", "num_images",
)  # fmt: skip
_LARGEST = 1e12
"""Largest value that a figure of an evaluation may have."""
_MARKUP = "\\`*[]|~"
_TEXTS = {"scheme", "preset", "protocol", "model"}
_PERCENT = {"top1", "top1_std", "teacher_top1", "drop", "agreement", "top5"}


def read_rows(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """One row per metrics file of ``genie evaluate``; a row is named after the file's folder.

    Where two files share a folder, rows are named after the files, or after folder and file. A folder
    stands for the JSON files in it.

    Raises:
        InputError: a file is missing or holds no metrics, or a folder holds no metrics file.
        UsageError: a file is given twice.
    """
    paths = [file for path in paths for file in _files(path)]
    return [{**_read_figures(path), "scheme": name} for path, name in zip(paths, _names(paths), strict=True)]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.json"), key=lambda file: file.stem)
    if not files:
        raise InputError(f"Folder {path} holds no metrics file (*.json) of 'genie evaluate --out'.")
    return files


def _names(paths: Sequence[Path]) -> list[str]:
    # A file may be a link into a cache, whose file names mean nothing to the user.
    whole = [path.parent.resolve() / path.name for path in paths]
    for path in whole:
        if whole.count(path) > 1:
            raise UsageError(f"Metrics file {path} is given twice.")
    for names in (
        [path.parent.name for path in whole],
        [path.stem for path in whole],
        [f"{path.parent.name}/{path.stem}" for path in whole],
        [f"{path.parent.parent.name}/{path.parent.name}" for path in whole],
    ):
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _read_figures(path: Path) -> dict[str, Any]:
    try:
        figures = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"Metrics file {path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise InputError(f"Metrics file {path} is not JSON: give files written by 'genie evaluate --out'.") from None
    if not isinstance(figures, dict) or figures.get("top1") is None:
        raise InputError(f"{path} holds no metrics of 'genie evaluate': 'top1' is missing.")
    row = {key: figures.get(key) for key in COLUMNS}
    for key, value in row.items():
        if value is not None and not (isinstance(value, str) if key in _TEXTS else _is_figure(value)):
            raise InputError(f"{path} holds no metrics of 'genie evaluate': its '{key}' is not a valid value.")
    return row


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def as_markdown(rows: Sequence[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """The table in markdown, percentages with two decimals; a model that all rows share is written above it."""
    models = {row["model"] for row in rows}
    model = models.pop() if len(models) == 1 else None
    shown = [
        column
        for column in columns
        if any(row[column] is not None for row in rows) and not (column == "model" and model is not None)
    ]
    align = [":--" if column in _TEXTS else "--:" for column in shown]
    lines = [_line(shown), _line(align)]
    lines += [_line([_cell(row[column], column) for column in shown]) for row in rows]
    title = f"Model: {_escape(model)}\n\n" if model is not None else ""
    return title + "\n".join(lines) + "\n"


def as_csv(rows: Sequence[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """The table as CSV, for plots."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def as_json(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as JSON, by scheme."""
    return json.dumps({row["scheme"]: {k: v for k, v in row.items() if k != "scheme"} for row in rows}, indent=2) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any, column: str) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if column in _PERCENT else _escape(str(value))


def _escape(text: str) -> str:
    """One line of text that markdown shows as it is."""
    text = "".join(f"\\{char}" if char in _MARKUP else char for char in " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;")
