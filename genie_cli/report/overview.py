"""The sections on all runs: their table, a figure against size, and the speed of exported files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from genie_cli.evaluation.keys import AGREEMENT, DROP
from genie_cli.report import charts
from genie_cli.report.blocks import Cell, Part, Section, Table, columns_of, number_cell, without_empty
from genie_cli.report.collect import Found
from genie_cli.report.figures import bits_of, first_figure, form_of, model_of
from genie_cli.report.room import MOST_ROWS


def overview(found: Found, links: Mapping[int, str]) -> Iterator[Section]:
    """The table of runs, and accuracy against size where there is something to compare."""
    if not found.runs:
        return
    rows = []
    points: dict[str, list[tuple[str, float, float]]] = {}
    for run in found.runs:
        metric, figure, value = first_figure(run)
        size = run.quantized.size if run.quantized is not None else None
        errors = [unit.error for unit in run.quantized.units if unit.error is not None] if run.quantized else []
        export = next(iter(run.exports.values()), {})
        rows.append(
            [
                Cell(run.name, link=links.get(id(run), "")),
                Cell(model_of(run)),
                Cell(bits_of(run)),
                number_cell(size and size.num_bytes / 1e6, ".3g"),
                number_cell(size and size.compression, ".1f"),
                Cell(figure),
                number_cell(value, form_of(metric)),
                number_cell(run.figures.get(DROP), form_of(metric)),
                number_cell(run.figures.get(AGREEMENT), ".2f"),
                number_cell(sum(errors) / len(errors) if errors else None, ".4f"),
                number_cell(max(errors) if errors else None, ".4f"),
                number_cell(export.get("num_bytes") and export["num_bytes"] / 1e6, ".3g"),
                number_cell(export.get("agreement") and export["agreement"] * 100, ".2f"),
            ]
        )
        if size is not None and value is not None:
            points.setdefault(figure, []).append((run.name, size.num_bytes / 1e6, value))
    columns = columns_of(
        "run", "network", "bits", "#size MB", "#times smaller", "figure", "#value", "#drop", "#agreement %",
        "#mean unit error", "#worst unit error", "#exported MB", "#exported agrees %",
    )  # fmt: skip
    alone = len(found.runs) - len(links)
    note = f"The last {alone} runs stand in this table alone, so that the page stays small." if alone else ""
    parts = [Part(note=note, table=Table("Runs", *without_empty(columns, rows[:MOST_ROWS])))]
    for figure, those in points.items():
        if len(those) > 1:
            caption = f"{figure} against the size of the network"
            parts.append(Part(title=f"{figure} against size", charts=[(charts.scatter_chart(those, figure), caption)]))
    yield Section("runs", "Runs", parts=parts)


def speed_section(found: Found) -> Iterator[Section]:
    """Times of exported files, beside those of the float file in the same runtime."""
    if not found.speeds:
        return
    sizes = list(dict.fromkeys(size for row in found.speeds for size in row["milliseconds"]))
    floats = {(row["runtime"], row["threads"]): row for row in found.speeds if row["weights"] == "float"}
    rows = []
    for row in found.speeds[:MOST_ROWS]:
        beside = floats.get((row["runtime"], row["threads"]))
        cells = [Cell(_file_name(row["file"])), Cell(str(row["weights"])), Cell(str(row["runtime"]))]
        cells.append(number_cell(row["threads"], "g"))
        for size in sizes:
            own = row["milliseconds"].get(size)
            cells.append(number_cell(own, ".3f"))
            base = beside["milliseconds"].get(size) if beside is not None else None
            cells.append(number_cell(base / own if base and own else None, ".2f"))
        rows.append(cells)
    titles = [title for size in sizes for title in (f"#ms, batch {size}", f"#times faster than float, batch {size}")]
    columns = columns_of("file", "weights", "runtime", "#threads", *titles)
    yield Section("speed", "Speed", parts=[Part(table=Table("Milliseconds", *without_empty(columns, rows)))])


def _file_name(path: Any) -> str:
    return str(path).replace("\\", "/").rpartition("/")[2]
