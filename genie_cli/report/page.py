"""The page of a report: what is known of each run as sections of tables and charts, in one file without a network."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from genie_cli.artifacts.images import ImageSet
from genie_cli.artifacts.network_size import described_beside_float, packed_bytes
from genie_cli.artifacts.picture import as_png, picture_of
from genie_cli.artifacts.pixels import pixel_statistics
from genie_cli.artifacts.unit_figures import described_errors
from genie_cli.evaluation.keys import AGREEMENT, DROP, IN_PERCENT, PER_CLASS, figures_of
from genie_cli.report import charts
from genie_cli.report.collect import Found, QuantizedFolder, ReportedRun
from genie_cli.sizes import file_size

LIMIT = 5_000_000
"""Bytes that a page stays under."""
_DRAWN = 4_200_000
"""Bytes of charts and pictures; the rest is for tables."""
_MOST_RUNS = 60
"""Runs with a section of their own; more stand in the table alone."""
_MOST_ROWS = 400
"""Rows of a table."""
NUM_IMAGES, _LONGEST_SIDE = 64, 96
"""Images of a set that are shown, and their pixels."""
_LARGEST_PNG = 300_000
"""Bytes; a larger picture becomes a JPEG, which noise suits better."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: shown.
        value: number to sort by; None: the text.
        link: id of a section on the page.
    """

    text: str
    value: float | None = None
    link: str = ""


@dataclass(frozen=True)
class Column:
    """The heading of a column, and whether it holds numbers."""

    title: str
    is_number: bool = False


@dataclass(frozen=True)
class Table:
    """A table that can be sorted."""

    title: str
    columns: tuple[Column, ...]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Picture:
    """A picture inside the page."""

    source: str
    alt: str
    caption: str
    width: int
    height: int


@dataclass
class Part:
    """A part of a section; whatever it has is shown in the order of the fields."""

    title: str = ""
    note: str = ""
    images: list[Picture] = field(default_factory=list)
    charts: list[tuple[Markup, str]] = field(default_factory=list)
    id: str = ""
    choice_label: str = ""
    choices: list[tuple[str, Markup]] = field(default_factory=list)
    table: Table | None = None
    is_folded: bool = False


@dataclass
class Section:
    """A section of the page."""

    id: str
    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)


class _Room:
    """The bytes that charts may still take."""

    def __init__(self, num_bytes: int) -> None:
        self.left = num_bytes

    def take(self, drawing: str) -> bool:
        """True if there is room for a drawing, which then takes it."""
        size = len(drawing.encode())
        if size > self.left:
            return False
        self.left -= size
        return True


def make_page(found: Found) -> str:
    """The page as HTML; the same files give the same text.

    Charts are left out where the page would become too large, those of the best layers first, and the page says so.

    Args:
        found: what was collected.

    Raises:
        UsageError: a package is not installed.
        InputError: figures that cannot be used.
    """
    charts.check_charts()
    num_sections = min(len(found.runs), _MOST_RUNS)
    page = _rendered(found, num_sections)
    while len(page.encode()) > LIMIT and num_sections > 1:  # many runs of large networks: their tables alone
        num_sections //= 2
        page = _rendered(found, num_sections)
    return page


def _rendered(found: Found, num_sections: int) -> str:
    """The page on which so many runs have a section of their own."""
    room = _Room(_DRAWN)
    shown = found.runs[:num_sections]
    links = {id(run): f"run-{number}" for number, run in enumerate(shown, 1)}
    sections = [*_overview(found, links), *_images(found, room), *_synthesis(found, room), *_speed(found)]
    for number, run in enumerate(shown):
        share = _Room(room.left // (len(shown) - number))
        before = share.left
        sections.append(_run(run, links[id(run)], share))
        room.left -= before - share.left
    assets = files("genie_cli.report") / "assets"
    style, script, template = ((assets / name).read_text("utf-8") for name in ("style.css", "script.js", "page.html"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return (
        environment.from_string(template)
        .render(
            title=_title(found),
            subtitle=_subtitle(found),
            sections=[section for section in sections if section.parts or section.facts],
            style=Markup(style),
            script=Markup(script),
        )
        .lstrip()
    )


def _title(found: Found) -> str:
    models = {_model(run) for run in found.runs} - {""}
    model = models.pop() if len(models) == 1 else ""
    if len(found.runs) == 1:
        return ": ".join(filter(None, (model, found.runs[0].name)))
    of = f" of {model}" if model else ""
    return f"{len(found.runs)} runs{of}" if found.runs else "Calibration images"


def _subtitle(found: Found) -> str:
    count = len(found.images)
    told = [f"{len(found.runs)} run(s)", *([f"{count} image set(s)"] if count else [])]
    return f"What genie made: {', '.join(told)}. This page is complete in itself and needs no network."


def _model(run: ReportedRun) -> str:
    if run.quantized is not None:
        return run.quantized.metadata.teacher
    fields = run.evaluation or next(iter(run.exports.values()), {})
    return str(fields.get("model") or fields.get("teacher") or "")


def _overview(found: Found, links: Mapping[int, str]) -> Iterator[Section]:
    """The table of runs, and accuracy against size where there is something to compare."""
    if not found.runs:
        return
    rows = []
    points: dict[str, list[tuple[str, float, float]]] = {}
    for run in found.runs:
        metric, figure, value = _first_figure(run)
        size = run.quantized.size if run.quantized is not None else None
        errors = [unit.error for unit in run.quantized.units if unit.error is not None] if run.quantized else []
        export = next(iter(run.exports.values()), {})
        rows.append(
            [
                Cell(run.name, link=links.get(id(run), "")),
                Cell(_model(run)),
                Cell(_bits(run)),
                _number(size and size.num_bytes / 1e6, ".3g"),
                _number(size and size.compression, ".1f"),
                Cell(figure),
                _number(value, _form(metric)),
                _number(run.figures.get(DROP), _form(metric)),
                _number(run.figures.get(AGREEMENT), ".2f"),
                _number(sum(errors) / len(errors) if errors else None, ".4f"),
                _number(max(errors) if errors else None, ".4f"),
                _number(export.get("num_bytes") and export["num_bytes"] / 1e6, ".3g"),
                _number(export.get("agreement") and export["agreement"] * 100, ".2f"),
            ]
        )
        if size is not None and value is not None:
            points.setdefault(figure, []).append((run.name, size.num_bytes / 1e6, value))
    columns = _columns(
        "run", "network", "bits", "#size MB", "#times smaller", "figure", "#value", "#drop", "#agreement %",
        "#mean unit error", "#worst unit error", "#exported MB", "#exported agrees %",
    )  # fmt: skip
    alone = len(found.runs) - len(links)
    note = f"The last {alone} runs stand in this table alone, so that the page stays small." if alone else ""
    parts = [Part(note=note, table=Table("Runs", *_without_empty(columns, rows[:_MOST_ROWS])))]
    for figure, those in points.items():
        if len(those) > 1:
            caption = f"{figure} against the size of the network"
            parts.append(Part(title=f"{figure} against size", charts=[(charts.scatter_chart(those, figure), caption)]))
    yield Section("runs", "Runs", parts=parts)


def _first_figure(run: ReportedRun) -> tuple[str, str, float | None]:
    """Metric, name and value of the most important figure."""
    if run.evaluation is None:
        return "", "", None
    row = run.figures
    first = figures_of(row)[0]
    return row["metric"], f"{first} %" if row["metric"] in IN_PERCENT else first, row[first]


def _form(metric: str) -> str:
    return ".2f" if metric in IN_PERCENT else ".4g"


def _bits(run: ReportedRun) -> str:
    config = run.quantized.metadata.config if run.quantized is not None else run.evaluation or {}
    weight, activation = config.get("weight_bits"), config.get("activation_bits")
    if isinstance(weight, dict) or weight is None:
        return ""
    return f"w{weight}" + (f"a{activation}" if activation is not None else "")


def _images(found: Found, room: _Room) -> Iterator[Section]:
    pictures = []
    for name, images in found.images.items():
        picture = _picture(name, images)
        if room.take(picture.source):
            pictures.append(picture)
    left_out = len(found.images) - len(pictures)
    note = f"{left_out} more set(s) are not shown, so that the page stays small." if left_out else ""
    if found.images:
        yield Section("images", "Images", parts=[Part(note=note, images=pictures)])


def _picture(name: str, images: ImageSet) -> Picture:
    metadata = images.metadata
    num_shown = min(NUM_IMAGES, len(images))
    picture = picture_of(images, num_shown, _LONGEST_SIDE)
    content, kind = as_png(picture), "png"
    if len(content) > _LARGEST_PNG:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        content, kind = buffer.getvalue(), "jpeg"
    statistics = pixel_statistics(images)
    made = "real images" if metadata.teacher is None else f"synthesized for {metadata.teacher}"
    caption = (
        f"{name}: {num_shown} of {len(images)}, {'x'.join(map(str, images.images.shape[1:]))}, {made}; pixels from 0 "
        f"to 1: mean {', '.join(f'{value:.3f}' for value in statistics.mean)}, "
        f"std {', '.join(f'{value:.3f}' for value in statistics.std)}, {statistics.share_outside:.2%} outside"
    )
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return Picture(source, f"Grid of {num_shown} images of {name}", caption, picture.width, picture.height)


def _synthesis(found: Found, room: _Room) -> Iterator[Section]:
    parts = []
    for name, batches in found.synthesis.items():
        caption = f"Loss of each batch, from {name}"
        if len(batches) > _num_drawn(batches):
            caption += f" (the first {_num_drawn(batches)} of {len(batches)})"
        drawing = charts.curves_chart({f"batch {n}": _thinned(rows) for n, rows in batches.items()}, caption, "loss")
        if room.take(drawing):
            parts.append(Part(charts=[(drawing, caption)]))
    if parts:
        yield Section("synthesis", "Loss of the synthesis", parts=parts)


def _num_drawn(curves: Mapping[Any, Any]) -> int:
    """Curves of a chart that are drawn."""
    return min(len(curves), charts.MOST_CURVES)


def _thinned(rows: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """A curve of a few hundred points; the last one stays."""
    every = max(1, math.ceil(len(rows) / 200))
    return rows[::-1][::every][::-1]


def _speed(found: Found) -> Iterator[Section]:
    """Times of exported files, beside those of the float file in the same runtime."""
    if not found.speeds:
        return
    sizes = list(dict.fromkeys(size for row in found.speeds for size in row["milliseconds"]))
    floats = {(row["runtime"], row["threads"]): row for row in found.speeds if row["weights"] == "float"}
    rows = []
    for row in found.speeds[:_MOST_ROWS]:
        beside = floats.get((row["runtime"], row["threads"]))
        cells = [Cell(_file_name(row["file"])), Cell(str(row["weights"])), Cell(str(row["runtime"]))]
        cells.append(_number(row["threads"], "g"))
        for size in sizes:
            own = row["milliseconds"].get(size)
            cells.append(_number(own, ".3f"))
            base = beside["milliseconds"].get(size) if beside is not None else None
            cells.append(_number(base / own if base and own else None, ".2f"))
        rows.append(cells)
    titles = [title for size in sizes for title in (f"#ms, batch {size}", f"#times faster than float, batch {size}")]
    columns = _columns("file", "weights", "runtime", "#threads", *titles)
    yield Section("speed", "Speed", parts=[Part(table=Table("Milliseconds", *_without_empty(columns, rows)))])


def _file_name(path: Any) -> str:
    return str(path).replace("\\", "/").rpartition("/")[2]


def _run(run: ReportedRun, link: str, room: _Room) -> Section:
    """The section of one run; charts as far as there is room, the smaller and more telling ones first."""
    section = Section(link, run.name, _facts(run))
    made: list[Callable[[], Iterator[Part]]] = []
    if run.quantized is not None:
        made += [partial(_bits_part, run.quantized, room), partial(_unit_parts, run.quantized, room)]
    if run.evaluation is not None:
        made += [partial(_class_part, run.evaluation, room), partial(_evaluation_part, run.evaluation)]
    if run.exports:
        made.append(partial(_export_part, run.exports))
    if run.quantized is not None:
        made += [partial(_histogram_parts, run.quantized, link, room), partial(_recipe_parts, run.quantized)]
    for parts in made:
        section.parts.extend(parts())
    return section


def _facts(run: ReportedRun) -> list[tuple[str, str]]:
    facts = [("network", _model(run))]
    if run.quantized is not None:
        made, units = run.quantized.metadata, run.quantized.units
        facts += [("recipe", f"{made.preset}, protocol {made.protocol}"), ("bits", _bits(run))]
        facts.append(("size", run.quantized.size.described()))
        if made.coverage is not None:
            share = made.coverage
            told = f"{share.parameters:.1%} of the parameters, {share.multiplications:.1%} of the multiplications"
            facts.append(("quantized", told))
        if units:
            facts.append(("relative error of units", described_errors(units)))
    if run.evaluation is not None:
        metric, figure, value = _first_figure(run)
        facts.append((figure, "none" if value is None else format(value, _form(metric))))
        if _is_number(run.figures.get(DROP)):
            facts.append(("drop from the network in float", format(run.figures[DROP], _form(metric))))
        if _is_number(run.figures.get(AGREEMENT)):
            facts.append(("equal decisions", f"{run.figures[AGREEMENT]:.2f} %"))
    if run.performance is not None and _is_number(run.performance.get("seconds")):
        facts.append(("time of the quantization", f"{run.performance['seconds']:.1f} s"))
    return [(name, value) for name, value in facts if value]


def _in_network_order(quantized: QuantizedFolder) -> Callable[[str], tuple[int, str]]:
    """A key to sort layers, units and activations by, front to back: JSON has them in the order of their names.

    The units tell the order. An activation stands where the layer does that its name begins with.
    """
    places = {name: place for place, unit in enumerate(quantized.units) for name in (unit.name, *unit.layers)}
    layers = [layer for unit in quantized.units for layer in unit.layers]
    within = {name: place for place, name in enumerate(layers)}

    def place(name: str) -> tuple[int, str]:
        known = name
        while known and known not in within and known not in places:
            known = known.rpartition(".")[0]
        if known in within:
            return within[known], name
        first = [within[layer] for unit in quantized.units if unit.name == known for layer in unit.layers]
        return (first or [len(layers)])[0], name

    return place


def _bits_part(quantized: QuantizedFolder, room: _Room) -> Iterator[Part]:
    made, order = quantized.metadata, _in_network_order(quantized)
    weights = {name: made.weights[name].bits for name in sorted(made.weights, key=order)}
    activations = {name: made.activations[name].bits for name in sorted(made.activations, key=order)}
    part = Part(title="Bits")
    drawing = charts.bits_chart(weights, activations)
    if room.take(drawing):
        part.charts.append((drawing, "Bits of each layer's weights, and of each activation"))
    rows = [
        [Cell(name), Cell("x".join(map(str, entry.shape))), _number(entry.bits, "g"), Cell(entry.grid),
         Cell(file_size(packed_bytes(entry)), packed_bytes(entry))]
        for name, entry in ((name, made.weights[name]) for name in list(weights)[:_MOST_ROWS])
    ]  # fmt: skip
    part.table = Table("Weights", _columns("layer", "shape", "#bits", "grid", "#size"), rows)
    part.is_folded = True
    yield part
    in_float = quantized.metadata.coverage.in_float if quantized.metadata.coverage is not None else {}
    if in_float:
        cells = [[Cell(name), Cell(reason)] for name, reason in list(in_float.items())[:_MOST_ROWS]]
        yield Part(table=Table("Weights that stay in float", _columns("layer", "reason"), cells), is_folded=True)


def _unit_parts(quantized: QuantizedFolder, room: _Room) -> Iterator[Part]:
    units = quantized.units
    if not units:
        return
    part = Part(title="Error of each unit")
    drawing = charts.errors_chart(
        [unit.name for unit in units],
        [unit.relative_error for unit in units],
        [unit.held_out_error for unit in units],
    )
    if room.take(drawing):
        part.charts.append((drawing, "Squared error at the unit's output over the output's own energy"))
    rows = [
        [Cell(unit.name), Cell(", ".join(unit.layers)), _number(unit.num_steps, "g"),
         _number(unit.relative_error, ".6f"), _number(unit.held_out_error, ".6f")]
        for unit in units[:_MOST_ROWS]
    ]  # fmt: skip
    columns = _columns("unit", "layers", "#steps", "#error", "#held-out error")
    part.table, part.is_folded = Table("Reconstruction units", *_without_empty(columns, rows)), True
    yield part
    losses = quantized.details.losses if quantized.details is not None else {}
    if losses:
        caption = f"Loss of each unit while it learned{_first_of(losses)}"
        known = {unit.name: losses[unit.name] for unit in units if unit.name in losses}
        curves = {
            name: [(step, loss) for step, loss, _ in rows] for name, rows in {**known, **losses}.items()
        }  # fine-tuning comes behind the units
        drawing = charts.curves_chart(curves, caption, "loss")
        if room.take(drawing):
            yield Part(title="Loss of each unit", charts=[(drawing, caption)])


def _first_of(curves: Mapping[str, Any]) -> str:
    shown = _num_drawn(curves)
    return f" (the first {shown} of {len(curves)})" if shown < len(curves) else ""


def _class_part(evaluation: Mapping[str, Any], room: _Room) -> Iterator[Part]:
    classes = evaluation.get(PER_CLASS)
    if not isinstance(classes, dict):
        return
    known = {str(name): float(value) for name, value in classes.items() if _is_number(value)}
    if not known:
        return
    metric = evaluation.get("metric", "classification")
    figure = "top-1 %" if metric == "classification" else f"{metric} %"
    weakest = dict(sorted(known.items(), key=lambda pair: pair[1])[:80])
    shown = {name: value for name, value in known.items() if name in weakest}
    note = "" if len(shown) == len(known) else f"The weakest {len(shown)} of {len(known)} are drawn."
    part = Part(title="Each class", note=note)
    drawing = charts.classes_chart(list(shown), list(shown.values()), figure)
    if room.take(drawing):
        part.charts.append((drawing, f"{figure} of each class"))
    rows = [[Cell(name), _number(value, ".2f")] for name, value in list(known.items())[:_MOST_ROWS]]
    part.table, part.is_folded = Table("Classes", _columns("class", f"#{figure}"), rows), True
    yield part


def _evaluation_part(evaluation: Mapping[str, Any]) -> Iterator[Part]:
    rows = [[Cell(key), Cell(_plain(value))] for key, value in evaluation.items() if _is_plain(key, value)]
    yield Part(table=Table("Figures of the evaluation", _columns("key", "value"), rows), is_folded=True)


def _is_plain(key: str, value: Any) -> bool:
    return key != "kind" and not isinstance(value, dict | list)


def _export_part(exports: Mapping[str, Mapping[str, Any]]) -> Iterator[Part]:
    rows = []
    for name, report in exports.items():
        num_float_bytes = report.get("num_float_bytes")
        size = file_size(report["num_bytes"])
        if _is_number(num_float_bytes):
            size = described_beside_float(report["num_bytes"], int(num_float_bytes or 0))
        layers = f"{report['num_integer_layers']} of {report['num_layers']}" if "num_layers" in report else ""
        rows.append(
            [Cell(f"{name}.{report.get('format', '')}".rstrip(".")), Cell(str(report.get("runtime", ""))),
             Cell(size, report["num_bytes"]), _number(report["agreement"] * 100, ".2f"), Cell(layers)]
        )  # fmt: skip
    columns = _columns("file", "runtime", "#size", "#agreement %", "integer layers")
    yield Part(title="Exported files", table=Table("Exported files", *_without_empty(columns, rows)))


def _histogram_parts(quantized: QuantizedFolder, link: str, room: _Room) -> Iterator[Part]:
    """Histograms of as many layers as there is room for, in the order of the network."""
    details = quantized.details
    if details is None:
        yield Part(note="The folder has no details.json: an earlier genie wrote it, so there are no histograms.")
        return
    order = _in_network_order(quantized)
    for title, label, entries, sides in (
        ("Weights before and after", "Layer", details.weights, ("float", "quantized")),
        ("Outputs of units before and after", "Unit", details.activations, ("network in float", "quantized network")),
    ):
        part = Part(title=title, id=f"{link}-{label.lower()}", choice_label=label)
        for name in sorted(entries, key=order):
            drawing = charts.histogram_chart(entries[name], name, sides)
            if not room.take(drawing):
                break
            part.choices.append((name, drawing))
        left_out = len(entries) - len(part.choices)
        if left_out:
            part.note = f"{left_out} more are not drawn, so that the page stays under {file_size(LIMIT)}."
        if entries:
            yield part


def _recipe_parts(quantized: QuantizedFolder) -> Iterator[Part]:
    made = quantized.metadata
    rows = [[Cell(key), Cell(_plain(value))] for key, value in sorted(made.config.items())]
    yield Part(table=Table("Recipe", _columns("key", "value"), rows), is_folded=True)
    told = {
        "genie": made.tool_version, "torch": made.torch_version, "device": made.device_kind,
        "arithmetic": made.arithmetic and f"{made.arithmetic.dtype}, {made.arithmetic.kernels}", "seed": made.seed,
        "input": "x".join(map(str, made.input.shape)), "network's hash": made.teacher_sha256,
        "images' hash": made.images_sha256, "weights' hash": made.content_sha256,
        "distance of rewrites": ", ".join(f"{name} {distance:.1e}" for name, distance in made.checks.items()),
    }  # fmt: skip
    rows = [[Cell(key), Cell(_plain(value))] for key, value in told.items()]
    yield Part(table=Table("Versions and hashes", _columns("of", "is"), rows), is_folded=True)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return "none" if value is None else str(value)


def _columns(*titles: str) -> tuple[Column, ...]:
    """Columns; a title that begins with ``#`` is that of numbers."""
    return tuple(Column(title.removeprefix("#"), title.startswith("#")) for title in titles)


def _without_empty(columns: tuple[Column, ...], rows: list[list[Cell]]) -> tuple[tuple[Column, ...], list[list[Cell]]]:
    """The same without columns of which no row has anything."""
    kept = [place for place in range(len(columns)) if any(row[place].text for row in rows)]
    return tuple(columns[place] for place in kept), [[row[place] for place in kept] for row in rows]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any, form: str) -> Cell:
    """A number as text of `form`, sorted by its value; nothing where there is none."""
    return Cell(format(value, form), float(value)) if _is_number(value) else Cell("")
