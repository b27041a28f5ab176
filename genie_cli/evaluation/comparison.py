"""The table that compares runs: rows from metrics files, written as markdown, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genie_cli.errors import InputError

COLUMNS = (
    "scheme", "preset", "protocol", "weight_bits", "activation_bits",
    "top1", "teacher_top1", "drop", "agreement", "top5", "num_images",
)  # fmt: skip
_PERCENT = {"top1", "teacher_top1", "drop", "agreement", "top5"}


def read_rows(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """One row a metrics file of ``genie evaluate``; a folder stands for the JSON files in it.

    A row is called after the file, or after its folder where files have one name.

    Raises:
        InputError: a file that is missing or no metrics, or a folder without one.
    """
    paths = [file for path in paths for file in _files(path)]
    stems = [path.stem for path in paths]
    distinct = len(set(stems)) == len(stems)
    folders = [path.resolve().parent.name for path in paths]
    rows = []
    for path, folder in zip(paths, folders, strict=True):
        try:
            figures = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"Metrics file {path} cannot be read: {error}") from None
        if not isinstance(figures, dict) or not isinstance(figures.get("top1"), int | float):
            raise InputError(f"{path} holds no metrics of `genie evaluate`: 'top1' is missing.")
        row = {key: figures.get(key) for key in COLUMNS}
        rows.append({**row, "scheme": path.stem if distinct else folder, "model": figures.get("model")})
    return rows


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.json"))
    if not files:
        raise InputError(f"Folder {path} holds no metrics file (*.json) of `genie evaluate --out`.")
    return files


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table in markdown, percentages with two decimals."""
    shown = [column for column in COLUMNS if any(row[column] is not None for row in rows)]
    align = [":--" if column in ("scheme", "preset", "protocol") else "--:" for column in shown]
    lines = [_line(shown), _line(align)]
    lines += [_line([_cell(row[column], column) for column in shown]) for row in rows]
    models = sorted({str(row["model"]) for row in rows if row["model"]})
    title = f"Model: {', '.join(map(_escape, models))}\n\n" if models else ""
    return title + "\n".join(lines) + "\n"


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The table as CSV, for plots."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, extrasaction="ignore", lineterminator="\n")
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
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
