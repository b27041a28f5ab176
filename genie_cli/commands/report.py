"""``genie report``: the table that compares runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genie_cli.commands.options import AsJson
from genie_cli.commands.report_files import check_report_files
from genie_cli.commands.verbosity import is_quiet
from genie_cli.errors import UsageError

if TYPE_CHECKING:
    from genie_cli.artifacts.images import ImageSet
    from genie_cli.report.collect import Found

_TITLES = {
    "weight_bits": "W bits", "activation_bits": "A bits", "top1": "top-1 %", "teacher_top1": "teacher %",
    "agreement": "agreement %", "miou": "mIoU %", "teacher_miou": "teacher %", "pixel_accuracy": "pixels %",
    "map": "mAP %", "teacher_map": "teacher %", "map50": "mAP@50 %", "map75": "mAP@75 %", "sqnr_db": "SQNR dB",
    "relative_error": "rel. error", "num_bytes": "bytes",
}  # fmt: skip
"""Short names, so that the table fits a terminal of 80 columns."""
_MOST_NAMED = 5
"""Files that a note names."""
_TEXTS = ("scheme", "model", "metric", "preset")
Runs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN",
        help="JSON files of `genie evaluate --out`, or folders that hold them; with --html quantized folders, "
        "image sets, export files and loss curves too, or folders of these, with the folders inside.",
    ),
]
OverSeeds = Annotated[
    bool,
    typer.Option(
        "--over-seeds",
        help="One row for the runs whose names differ only in a part seed0 or s0: mean and sample deviation.",
    ),
]
ByBits = Annotated[
    bool,
    typer.Option(
        "--by-bits", help="A column for each bit width: rows are called without the part w4a4 of their names."
    ),
]
WithSize = Annotated[
    bool, typer.Option("--with-size", help="A column with the bytes of each quantized folder, for plots.")
]
Html = Annotated[
    Path | None,
    typer.Option("--html", help="Page to write: one file that opens anywhere, without network.", show_default=False),
]
Real = Annotated[
    str | None,
    typer.Option(
        "--real",
        help="Real images to show beside the synthetic ones, in the forms of `genie evaluate --data`.",
        metavar="SOURCE",
        show_default=False,
    ),
]
Pipeline = Annotated[
    Path | None,
    typer.Option(
        "--pipeline",
        metavar="DVC-YAML",
        help="Of folders, read only what stages of this DVC pipeline write: no run that was taken out of it.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Folder for table.md, .json, .csv and figures.json. \\[default: report, and none with --html]",
        show_default=False,
    ),
]


def report(
    metrics: Runs,
    over_seeds: OverSeeds = False,
    by_bits: ByBits = False,
    with_size: WithSize = False,
    html: Html = None,
    real: Real = None,
    pipeline: Pipeline = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Compare evaluated runs in one table (markdown, JSON, CSV), and show all that is known of runs on one page."""
    if html is None and real is not None:
        raise UsageError("--real shows images on a page: name it with --html FILE.")
    folder = Path("report") if out is None and html is None else out
    read = _files(metrics, html is not None, pipeline)
    check_report_files(read, html, folder)
    if html is not None:
        read = _write_page(read, html, real)
        if not read:
            if as_json:
                typer.echo("{}")
            return
    files, shown = _tables(read, over_seeds, by_bits, with_size)
    if folder is not None:
        _write_tables(files, folder)
    if as_json:
        typer.echo(files["table.json"].rstrip("\n"))
    else:
        _show(*shown)
    if folder is not None and not is_quiet():
        typer.echo(f"Written to {folder}: {', '.join(files)}", err=True)


def _files(runs: list[Path], for_page: bool, pipeline: Path | None) -> list[Path]:
    """The files, and with a page the quantized folders, that the RUNs stand for."""
    expand: Callable[[Path], Iterable[Path]]
    if for_page:
        from genie_cli.report.charts import check_charts
        from genie_cli.report.collect import parts_of

        check_charts()
        expand = parts_of
    else:
        from genie_cli.evaluation.comparison import files_of

        expand = files_of
    if pipeline is None:
        return [file for run in runs for file in expand(run)]
    from genie_cli.commands.display import note
    from genie_cli.report.pipeline import only_outputs

    kept, left_out = only_outputs(runs, expand, pipeline)
    if left_out:
        named = ", ".join(map(str, left_out[:_MOST_NAMED])) + (", ..." if len(left_out) > _MOST_NAMED else "")
        note(f"Left out, since no stage of {pipeline} writes them: {named}.")
    return kept


def _write_page(parts: list[Path], html: Path, real: str | None) -> list[Path]:
    """Write the page; returns the files of figures among what was given."""
    from genie_cli.commands.display import file_size
    from genie_cli.errors import InputError
    from genie_cli.report.collect import collect
    from genie_cli.report.page import make_page
    from genie_cli.report.room import LIMIT
    from genie_cli.runtime.atomic import atomic_write_text

    found = collect(parts)
    if real is not None:
        found.images["real images"] = _real_images(real, found)
    page = make_page(found)
    size = len(page.encode())
    if size > LIMIT:
        raise InputError(f"The page of {len(found.runs)} runs would have {file_size(size)}: give fewer runs.")
    atomic_write_text(html, page)
    if not is_quiet():
        typer.echo(f"Written to {html}: {file_size(size)}, {len(found.runs)} run(s)", err=True)
    return found.evaluations


def _real_images(source: str, found: Found) -> ImageSet:
    """Some real images, as pixels of the input that the RUNs record.

    Raises:
        UsageError: no RUN records an input, or an unknown source.
        InputError: images that cannot be used.
    """
    from genie_cli.artifacts.images import ImagesMetadata, image_set
    from genie_cli.artifacts.metadata import provenance
    from genie_cli.config import EvaluateConfig
    from genie_cli.evaluation.images import open_samples
    from genie_cli.report.pictures import NUM_IMAGES

    inputs = [images.metadata.input for images in found.images.values()]
    inputs += [run.quantized.metadata.input for run in found.runs if run.quantized is not None]
    if not inputs:
        raise UsageError("--real needs an image set or a quantized folder among the RUNs, which says their size.")
    samples = open_samples(source, EvaluateConfig(), inputs[0])
    pixels = samples.calibration_pixels(min(NUM_IMAGES, samples.num_images or NUM_IMAGES), 0)
    facts = provenance({}, 0, inputs[0], None, None)
    return image_set(pixels, ImagesMetadata(**facts, teacher_sha256=None, num_images=len(pixels), dtype="uint8"))


def _tables(metrics: list[Path], over_seeds: bool, by_bits: bool, with_size: bool) -> tuple[_Files, _Shown]:
    """The table as files, and as the terminal shows it."""
    from genie_cli.evaluation import aggregation, comparison

    rows = comparison.read_rows(metrics, with_size)
    if over_seeds:
        rows = aggregation.over_seeds(rows)
    columns = comparison.columns_of(rows)
    return _by_bits(rows, columns) if by_bits else _by_scheme(rows, columns)


def _write_tables(files: _Files, out: Path) -> None:
    """Write the table into a folder.

    Raises:
        InputError: the folder cannot be made.
    """
    from genie_cli.errors import InputError
    from genie_cli.runtime.atomic import atomic_write_text

    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"Output folder {out} cannot be made: {error.strerror}.") from None
    for name, text in files.items():
        atomic_write_text(out / name, text)


_Files = dict[str, str]
_Shown = tuple[str, list[dict[str, Any]], list[str]]
"""Title, rows and columns of the table on the terminal."""


def _by_scheme(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> tuple[_Files, _Shown]:
    from genie_cli.evaluation.comparison import as_csv, as_json, as_markdown, shown_figure
    from genie_cli.evaluation.keys import NUM_BYTES, figures_of
    from genie_cli.evaluation.pivot import mean_and_spread

    files = {"table.md": as_markdown(rows, columns), "table.json": as_json(rows), "table.csv": as_csv(rows, columns)}
    files["figures.json"] = _figures(rows)
    figures = _shown_figures(rows)
    runs = ["runs"] if "runs" in columns else []
    sizes = [NUM_BYTES] if NUM_BYTES in columns else []
    shown = [*_texts(rows, *([] if runs else ["preset"])), "weight_bits", "activation_bits", *sizes, *runs, *figures]
    cells = []
    for row in rows:
        texts = {key: shown_figure(row, row[key]) for key in figures if isinstance(row.get(key), int | float)}
        first = figures_of(row)[0]
        cells.append({**row, **texts, **({first: mean_and_spread(row)} if runs else {})})
    return files, ("Comparison", cells, shown)


def _shown_figures(rows: list[dict[str, Any]]) -> list[str]:
    """The figures that a terminal shows: those of the network, and the teacher's first one with the difference."""
    from genie_cli.evaluation.comparison import columns_of
    from genie_cli.evaluation.keys import CLASSIFICATION, DROP, figures_of, spread_key, teacher_key

    firsts = {figures_of(row)[0] for row in rows}
    if firsts == {CLASSIFICATION[0]}:
        without = teacher_key(CLASSIFICATION[0]) if "runs" in rows[0] else ""
        return [figure for figure in CLASSIFICATION[:-1] if figure != without]
    left_out = {key for key in columns_of(rows) if key.startswith(("teacher_", f"{DROP}_"))}
    left_out -= {teacher_key(first) for first in firsts}
    left_out |= {spread_key(first) for first in firsts}
    found = dict.fromkeys(key for row in rows for key in figures_of(row))
    return [key for key in found if key not in left_out and any(row.get(key) is not None for row in rows)]


def _by_bits(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> tuple[_Files, _Shown]:
    from genie_cli.evaluation import pivot
    from genie_cli.evaluation.comparison import as_csv, as_json, as_markdown

    long = pivot.with_bits(rows)
    bits, table = pivot.by_bits(long)
    text, caption = pivot.as_text(table, bits), pivot.caption(long)
    files = {
        "table.md": f"{as_markdown(text, ('scheme', 'model', *bits))}\n{caption}\n",
        "table.json": as_json(pivot.figures_only(table, bits)),
        "table.csv": as_csv(long, (*columns, *pivot.LONG_COLUMNS)),
        "figures.json": _figures(rows),
    }
    return files, (caption, text, [*_texts(text), *bits])


def _figures(rows: list[dict[str, Any]]) -> str:
    """The first figure of each run under its name, which is all that `dvc exp show` needs to compare experiments."""
    from genie_cli.evaluation.keys import figures_of

    return json.dumps({row["scheme"]: row[figures_of(row)[0]] for row in rows}, indent=2) + "\n"


def _texts(rows: list[dict[str, Any]], *more: str) -> list[str]:
    """The columns that distinguish rows; model and metric only where there are several."""
    return ["scheme", *(key for key in ("model", "metric") if len({row[key] for row in rows}) > 1), *more]


def _show(title: str, rows: list[dict[str, Any]], columns: list[str]) -> None:
    from genie_cli.commands.display import rows_table

    titles = [_TITLES.get(column, column) for column in columns]
    cells = [[row.get(column) for column in columns] for row in rows]
    rows_table(title, titles, cells, set(titles) - set(_TEXTS))
