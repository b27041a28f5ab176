"""The table that compares runs: rows from metrics files, written as markdown, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genie_cli.errors import InputError, UsageError
from genie_cli.evaluation.keys import CLASSIFICATION, IN_PERCENT, NUM_BYTES, figures_of
from genie_cli.evaluation.metrics_file import DEFAULT_METRIC, figure_names, metric_of, read_evaluation

COLUMNS = (
    "scheme", "model", "metric", "preset", "protocol", "weight_bits", "activation_bits", *CLASSIFICATION, "num_images",
)  # fmt: skip
"""Columns of rows that are all of classifications."""
_GENERIC = ("metrics", "evaluation", "eval", "figures", "result", "results")
"""Names of files that say nothing of the run."""
_MARKUP = "\\`*[]|~"
_TEXTS = {"scheme", "preset", "protocol", "model", "metric"}
_COMMON = ("model", "metric")
"""Facts that are written once where all rows share them, and the title of that line."""


def read_rows(paths: Sequence[Path], with_size: bool = False) -> list[dict[str, Any]]:
    """One row per metrics file of ``genie evaluate``; a row is named after the file's folder.

    Where `with_size`, a row has the bytes of the quantized folder too, None where the file does not tell them.

    Where two files share a folder, rows are named after the files, or after folder and file. A file alone gives its
    row its own name, unless that says only what such files are, as ``metrics.json`` does. A folder stands for the
    JSON files in it.

    Raises:
        InputError: a file is missing or holds no metrics, or a folder holds no metrics file.
        UsageError: a file is given twice, or a quantized folder.
    """
    paths = [file for path in paths for file in files_of(path)]
    return [{**_read_figures(path, with_size), "scheme": name} for path, name in zip(paths, _names(paths), strict=True)]


def files_of(path: Path) -> list[Path]:
    """The files that a RUN of a table stands for.

    Raises:
        InputError: a folder holds no metrics file.
        UsageError: a quantized folder, which only a page shows.
    """
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.json"), key=lambda file: file.stem)
    if _is_quantized(path):
        raise UsageError(
            f"{path} is a quantized folder, which only a page shows: give --html FILE, or the files of "
            "'genie evaluate --out'."
        )
    if not files:
        raise InputError(
            f"Folder {path} holds no metrics file (*.json) of 'genie evaluate --out'; folders in it are read with "
            "--html alone."
        )
    return files


def _is_quantized(folder: Path) -> bool:
    if not any(folder.glob("*.safetensors")):
        return False
    from genie_cli.artifacts.quantized_folder import WEIGHTS_FILE  # with torch, which a table does not need

    return (folder / WEIGHTS_FILE).is_file()


def _names(paths: Sequence[Path]) -> list[str]:
    # A file may be a link into a cache, whose file names mean nothing to the user.
    whole = [path.parent.resolve() / path.name for path in paths]
    for path in whole:
        if whole.count(path) > 1:
            raise UsageError(f"Metrics file {path} is given twice.")
    if len(whole) == 1 and whole[0].stem.lower() not in _GENERIC:
        return [whole[0].stem]
    for names in (
        [path.parent.name for path in whole],
        [path.stem for path in whole],
        [f"{path.parent.name}/{path.stem}" for path in whole],
        [f"{path.parent.parent.name}/{path.parent.name}" for path in whole],
    ):
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _read_figures(path: Path, with_size: bool) -> dict[str, Any]:
    figures = read_evaluation(path)
    facts = [column for column in COLUMNS if column not in (*CLASSIFICATION, "num_images")]
    sizes = [NUM_BYTES] if with_size else []
    row = {key: figures.get(key) for key in (*facts, *sizes, *figure_names(figures), "num_images")}
    return {**row, "metric": metric_of(figures)}


def columns_of(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The columns of rows in their order, the number of images last."""
    found = dict.fromkeys(key for row in rows for key in row)
    return (*(key for key in found if key != "num_images"), *(["num_images"] if "num_images" in found else []))


def as_markdown(rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> str:
    """The table in markdown, by default with the columns of `columns_of`; figures are shown as `shown_figure` does.

    A model or metric that all rows share is not a column: it is written above the table. That the metric is
    classification goes without saying.
    """
    shared = {key: rows[0][key] for key in _COMMON if key in rows[0] and len({row[key] for row in rows}) == 1}
    shown = [
        column
        for column in columns or columns_of(rows)
        if any(row.get(column) is not None for row in rows) and shared.get(column) is None
    ]
    align = [":--" if column in _TEXTS else "--:" for column in shown]
    lines = [_line(shown), _line(align)]
    lines += [_line([_cell(row, column) for column in shown]) for row in rows]
    told = {key: value for key, value in shared.items() if value not in (None, DEFAULT_METRIC)}
    title = "".join(f"{key.capitalize()}: {_escape(value)}\n\n" for key, value in told.items())
    return title + "\n".join(lines) + "\n"


def shown_figure(row: dict[str, Any], value: float) -> str:
    """A figure of a row: a percentage with two decimals, any other number with four digits."""
    return f"{value:.2f}" if (row.get("metric") or DEFAULT_METRIC) in IN_PERCENT else f"{value:.4g}"


def as_csv(rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> str:
    """The table as CSV, for plots; by default with the columns of `columns_of`."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns or columns_of(rows), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def as_json(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as JSON, by scheme."""
    return json.dumps({row["scheme"]: {k: v for k, v in row.items() if k != "scheme"} for row in rows}, indent=2) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    is_figure = column in figures_of(row) and isinstance(value, int | float)
    return shown_figure(row, value) if is_figure else _escape(str(value))


def _escape(text: str) -> str:
    """One line of text that markdown shows as it is."""
    text = "".join(f"\\{char}" if char in _MARKUP else char for char in " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;")
