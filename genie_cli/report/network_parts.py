"""The parts of a run's section that show its quantized network: bits, units, histograms, recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from genie_cli.artifacts.network_size import packed_bytes
from genie_cli.report import charts
from genie_cli.report.blocks import Cell, Part, Table, columns_of, number_cell, plain_text, without_empty
from genie_cli.report.collect import QuantizedFolder
from genie_cli.report.curves import first_of
from genie_cli.report.room import LIMIT, MOST_ROWS, Room
from genie_cli.sizes import file_size


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


def bits_part(quantized: QuantizedFolder, room: Room) -> Iterator[Part]:
    """Bits of each layer and activation, and the weights that stay in float."""
    made, order = quantized.metadata, _in_network_order(quantized)
    weights = {name: made.weights[name].bits for name in sorted(made.weights, key=order)}
    activations = {name: made.activations[name].bits for name in sorted(made.activations, key=order)}
    part = Part(title="Bits")
    drawing = charts.bits_chart(weights, activations)
    if room.take(drawing):
        part.charts.append((drawing, "Bits of each layer's weights, and of each activation"))
    rows = [
        [Cell(name), Cell("x".join(map(str, entry.shape))), number_cell(entry.bits, "g"), Cell(entry.grid),
         Cell(file_size(packed_bytes(entry)), packed_bytes(entry))]
        for name, entry in ((name, made.weights[name]) for name in list(weights)[:MOST_ROWS])
    ]  # fmt: skip
    part.table = Table("Weights", columns_of("layer", "shape", "#bits", "grid", "#size"), rows)
    part.is_folded = True
    yield part
    in_float = quantized.metadata.coverage.in_float if quantized.metadata.coverage is not None else {}
    if in_float:
        cells = [[Cell(name), Cell(reason)] for name, reason in list(in_float.items())[:MOST_ROWS]]
        yield Part(table=Table("Weights that stay in float", columns_of("layer", "reason"), cells), is_folded=True)


def unit_parts(quantized: QuantizedFolder, room: Room) -> Iterator[Part]:
    """Errors of the units, and their losses while they learned."""
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
        [Cell(unit.name), Cell(", ".join(unit.layers)), number_cell(unit.num_steps, "g"),
         number_cell(unit.relative_error, ".6f"), number_cell(unit.held_out_error, ".6f")]
        for unit in units[:MOST_ROWS]
    ]  # fmt: skip
    columns = columns_of("unit", "layers", "#steps", "#error", "#held-out error")
    part.table, part.is_folded = Table("Reconstruction units", *without_empty(columns, rows)), True
    yield part
    losses = quantized.details.losses if quantized.details is not None else {}
    if losses:
        caption = f"Loss of each unit while it learned{first_of(losses)}"
        known = {unit.name: losses[unit.name] for unit in units if unit.name in losses}
        curves = {
            name: [(step, loss) for step, loss, _ in rows] for name, rows in {**known, **losses}.items()
        }  # fine-tuning comes behind the units
        drawing = charts.curves_chart(curves, caption, "loss")
        if room.take(drawing):
            yield Part(title="Loss of each unit", charts=[(drawing, caption)])


def histogram_parts(quantized: QuantizedFolder, link: str, room: Room) -> Iterator[Part]:
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


def recipe_parts(quantized: QuantizedFolder) -> Iterator[Part]:
    """The recipe, versions and hashes."""
    made = quantized.metadata
    rows = [[Cell(key), Cell(plain_text(value))] for key, value in sorted(made.config.items())]
    yield Part(table=Table("Recipe", columns_of("key", "value"), rows), is_folded=True)
    told = {
        "genie": made.tool_version, "torch": made.torch_version, "device": made.device_kind,
        "arithmetic": made.arithmetic and f"{made.arithmetic.dtype}, {made.arithmetic.kernels}", "seed": made.seed,
        "input": "x".join(map(str, made.input.shape)), "network's hash": made.teacher_sha256,
        "images' hash": made.images_sha256, "weights' hash": made.content_sha256,
        "distance of rewrites": ", ".join(f"{name} {distance:.1e}" for name, distance in made.checks.items()),
    }  # fmt: skip
    rows = [[Cell(key), Cell(plain_text(value))] for key, value in told.items()]
    yield Part(table=Table("Versions and hashes", columns_of("of", "is"), rows), is_folded=True)
