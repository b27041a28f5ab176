"""The section of one run: its facts, its network, its figures and its exported files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from genie_cli.artifacts.network_size import described_beside_float
from genie_cli.artifacts.unit_figures import described_errors
from genie_cli.evaluation.keys import AGREEMENT, DROP, PER_CLASS
from genie_cli.report import charts
from genie_cli.report.blocks import (
    Cell,
    Part,
    Section,
    Table,
    columns_of,
    is_number,
    number_cell,
    plain_text,
    without_empty,
)
from genie_cli.report.collect import ReportedRun
from genie_cli.report.figures import bits_of, first_figure, form_of, model_of
from genie_cli.report.network_parts import bits_part, histogram_parts, recipe_parts, unit_parts
from genie_cli.report.room import MOST_ROWS, Room
from genie_cli.sizes import file_size


def run_section(run: ReportedRun, link: str, room: Room) -> Section:
    """The section of one run; charts as far as there is room, the smaller and more telling ones first."""
    section = Section(link, run.name, facts_of(run))
    made: list[Callable[[], Iterator[Part]]] = []
    if run.quantized is not None:
        made += [partial(bits_part, run.quantized, room), partial(unit_parts, run.quantized, room)]
    if run.evaluation is not None:
        made += [partial(_class_part, run.evaluation, room), partial(_evaluation_part, run.evaluation)]
    if run.exports:
        made.append(partial(_export_part, run.exports))
    if run.quantized is not None:
        made += [partial(histogram_parts, run.quantized, link, room), partial(recipe_parts, run.quantized)]
    for parts in made:
        section.parts.extend(parts())
    return section


def facts_of(run: ReportedRun) -> list[tuple[str, str]]:
    """The facts that are seen first of a run: name -> value."""
    facts = [("network", model_of(run))]
    if run.quantized is not None:
        made, units = run.quantized.metadata, run.quantized.units
        facts += [("recipe", f"{made.preset}, protocol {made.protocol}"), ("bits", bits_of(run))]
        facts.append(("size", run.quantized.size.described()))
        if made.coverage is not None:
            share = made.coverage
            told = f"{share.parameters:.1%} of the parameters, {share.multiplications:.1%} of the multiplications"
            facts.append(("quantized", told))
        if units:
            facts.append(("relative error of units", described_errors(units)))
    if run.evaluation is not None:
        metric, figure, value = first_figure(run)
        facts.append((figure, "none" if value is None else format(value, form_of(metric))))
        if is_number(run.figures.get(DROP)):
            facts.append(("drop from the network in float", format(run.figures[DROP], form_of(metric))))
        if is_number(run.figures.get(AGREEMENT)):
            facts.append(("equal decisions", f"{run.figures[AGREEMENT]:.2f} %"))
    if run.performance is not None and is_number(run.performance.get("seconds")):
        facts.append(("time of the quantization", f"{run.performance['seconds']:.1f} s"))
    return [(name, value) for name, value in facts if value]


def _class_part(evaluation: Mapping[str, Any], room: Room) -> Iterator[Part]:
    classes = evaluation.get(PER_CLASS)
    if not isinstance(classes, dict):
        return
    known = {str(name): float(value) for name, value in classes.items() if is_number(value)}
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
    rows = [[Cell(name), number_cell(value, ".2f")] for name, value in list(known.items())[:MOST_ROWS]]
    part.table, part.is_folded = Table("Classes", columns_of("class", f"#{figure}"), rows), True
    yield part


def _evaluation_part(evaluation: Mapping[str, Any]) -> Iterator[Part]:
    rows = [[Cell(key), Cell(plain_text(value))] for key, value in evaluation.items() if _is_plain(key, value)]
    yield Part(table=Table("Figures of the evaluation", columns_of("key", "value"), rows), is_folded=True)


def _is_plain(key: str, value: Any) -> bool:
    return key != "kind" and not isinstance(value, dict | list)


def _export_part(exports: Mapping[str, Mapping[str, Any]]) -> Iterator[Part]:
    rows = []
    for name, report in exports.items():
        num_float_bytes = report.get("num_float_bytes")
        size = file_size(report["num_bytes"])
        if is_number(num_float_bytes):
            size = described_beside_float(report["num_bytes"], int(num_float_bytes or 0))
        layers = f"{report['num_integer_layers']} of {report['num_layers']}" if "num_layers" in report else ""
        rows.append(
            [Cell(name), Cell(str(report.get("runtime", ""))),
             Cell(size, report["num_bytes"]), number_cell(report["agreement"] * 100, ".2f"), Cell(layers)]
        )  # fmt: skip
    columns = columns_of("file", "runtime", "#size", "#agreement %", "integer layers")
    yield Part(title="Exported files", table=Table("Exported files", *without_empty(columns, rows)))
