"""``genie report``: the table that compares runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_TITLES = {
    "weight_bits": "W bits", "activation_bits": "A bits", "top1": "top-1 %", "teacher_top1": "teacher %",
    "agreement": "agreement %",
}  # fmt: skip
"""Short names, so that the table fits a terminal of 80 columns."""


def report(
    metrics: Annotated[
        list[Path],
        typer.Argument(metavar="METRICS", help="JSON files written by `genie evaluate --out`, or folders of them."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write table.md, table.json and table.csv into.")] = Path(
        "report"
    ),
) -> None:
    """Compare evaluated runs in one table (markdown, JSON, and CSV for plots)."""
    from genie_cli.artifacts.atomic import atomic_write_text
    from genie_cli.commands.display import rows_table
    from genie_cli.errors import InputError
    from genie_cli.evaluation.comparison import as_csv, as_json, as_markdown, read_rows

    rows = read_rows(metrics)
    if not out.resolve().parent.is_dir():
        raise InputError(f"Output folder {out.parent} does not exist: create it or choose another --out.")
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"Output folder {out} cannot be made: {error.strerror}.") from None
    for name, text in (("table.md", as_markdown(rows)), ("table.json", as_json(rows)), ("table.csv", as_csv(rows))):
        atomic_write_text(out / name, text)
    figures = ("top1", "teacher_top1", "drop", "agreement")
    texts = ("scheme", "model", "preset") if len({row["model"] for row in rows}) > 1 else ("scheme", "preset")
    columns = [*texts, "weight_bits", "activation_bits", *figures]
    cells = [[f"{row[c]:.2f}" if c in figures and row[c] is not None else row[c] for c in columns] for row in rows]
    titles = [_TITLES.get(column, column) for column in columns]
    rows_table("Comparison", titles, cells, set(titles) - set(texts))
    typer.echo(f"Written to {out}: table.md, table.json, table.csv", err=True)
