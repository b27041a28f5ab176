"""Tables of an artifact or of a JSON file that genie wrote, for ``genie inspect``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from genie_cli.errors import InputError

_SIZES = ("size", "resize_size", "input_size")
"""Keys whose lists are height and width."""


def show_artifact(path: Path, as_json: bool) -> None:
    """Show an image set, a quantized folder or a file of one.

    Raises:
        InputError: it is none of these, or is damaged.
    """
    from genie_cli.artifacts.metadata import sniff

    fields = sniff(path)
    if fields["kind"] == "images":
        _show_images(path, fields, as_json)
    else:
        _show_quantized(path, fields, as_json)


def show_json(path: Path, as_json: bool) -> None:
    """Show a JSON file of one of genie's commands, and say what it is.

    Raises:
        InputError: it is not one.
    """
    from genie_cli.artifacts.json_kind import WRITERS, json_kind
    from genie_cli.artifacts.metrics import read_metrics
    from genie_cli.artifacts.unit_figures import read_units
    from genie_cli.commands.display import summary
    from genie_cli.commands.evaluate import show_figures
    from genie_cli.evaluation.metrics_file import check_evaluation

    fields = read_metrics(path)
    kind = json_kind(fields)
    if kind is None:
        raise InputError(f"{path} is JSON, and none of the files of genie's commands: {', '.join(WRITERS.values())}.")
    if kind == "evaluation":
        check_evaluation(fields, path)
    if as_json:
        typer.echo(json.dumps({"file": kind, **fields}, indent=2))
        return
    title = f"{path}: {WRITERS[kind]}"
    if kind == "evaluation":
        show_figures(title, {"metric": "classification", **fields})
        return
    units = read_units(fields, path) if kind == "quantization" else ()
    rows = {key: plain(value) for key, value in fields.items() if key != "units"}
    summary(title, {**rows, **(_export_rows(fields) if kind == "export" else {})})
    _show_units(units, {})


def show_exported(path: Path, as_json: bool) -> None:
    """Print what an exported file says of itself."""
    from genie_cli.commands.display import summary
    from genie_cli.deployment.network import open_exported

    _, metadata = open_exported(path, num_threads=1)
    fields = metadata.model_dump(mode="json")
    if as_json:
        typer.echo(json.dumps(fields, indent=2, sort_keys=True))
        return
    summary(str(path), {key: plain(value) for key, value in fields.items()})


def _export_rows(report: Mapping[str, Any]) -> dict[str, str]:
    """The size of an exported file beside float and its agreement, as ``genie export`` tells them."""
    from genie_cli.artifacts.export_report import described_agreement
    from genie_cli.artifacts.network_size import described_beside_float

    rows = {}
    if isinstance(report.get("num_float_bytes"), int) and isinstance(report["num_bytes"], int):
        rows["size"] = described_beside_float(report["num_bytes"], report["num_float_bytes"])
    if isinstance(report.get("agreement"), float):
        rows["agreement"] = described_agreement(report)
    return rows


def _show_images(path: Path, fields: dict[str, Any], as_json: bool) -> None:
    from genie_cli.artifacts.images import load_images
    from genie_cli.artifacts.pixels import pixel_statistics
    from genie_cli.commands.display import rows_table, summary

    images = load_images(path)
    statistics = pixel_statistics(images)
    if as_json:
        typer.echo(json.dumps({**fields, "statistics": asdict(statistics)}, indent=2, sort_keys=True))
        return
    summary(str(path), {key: plain(value) for key, value in fields.items() if key != "config"})
    channels = zip(statistics.mean, statistics.std, strict=True)
    summary(
        "Pixels, from 0 (black) to 1 (white)",
        {
            **{f"channel {i}": f"mean {mean:.4f}, std {std:.4f}" for i, (mean, std) in enumerate(channels)},
            "outside of 0..1": f"{statistics.share_outside:.2%} of the values",
        },
    )
    rows_table("Configuration", ["key", "value"], [[key, plain(value)] for key, value in fields["config"].items()])


def _show_quantized(path: Path, fields: dict[str, Any], as_json: bool) -> None:
    from genie_cli.artifacts.metadata import validate
    from genie_cli.artifacts.metrics import read_metrics
    from genie_cli.artifacts.network_size import network_size
    from genie_cli.artifacts.quantized import QuantizedMetadata
    from genie_cli.artifacts.quantized_folder import METRICS_FILE
    from genie_cli.artifacts.unit_figures import described_errors, read_units
    from genie_cli.commands.display import rows_table, summary

    metadata = validate(QuantizedMetadata, fields, path)
    metrics = path / METRICS_FILE
    size = network_size(path) if path.is_dir() else None
    units = read_units(read_metrics(metrics), metrics) if path.is_dir() else ()
    if as_json:
        more = {} if size is None else {**asdict(size), "units": [unit.model_dump(mode="json") for unit in units]}
        typer.echo(json.dumps({**fields, **more}, indent=2, sort_keys=True))
        return
    shown = {key: plain(value) for key, value in fields.items() if key not in ("weights", "activations", "config")}
    if size is not None:
        shown["network"] = size.described()
    if units:
        shown["error of units"] = described_errors(units)
    summary(str(path), shown)
    rows_table("Configuration", ["key", "value"], [[key, plain(value)] for key, value in fields["config"].items()])
    _show_units(units, metadata.weights)
    weights = [[name, by(entry.shape), entry.bits, entry.grid] for name, entry in metadata.weights.items()]
    rows_table("Weights", ["layer", "shape", "bits", "grid"], weights, {"bits"})
    activations = [
        [name, entry.bits, "signed" if entry.signed else "unsigned"] for name, entry in metadata.activations.items()
    ]
    rows_table("Activations", ["site", "bits", "grid"], activations, {"bits"})


def _show_units(units: Sequence[Any], weights: Mapping[str, Any]) -> None:
    """Units with their errors and, where the weights are known, bits and bytes.

    Args:
        units: of `artifacts.unit_figures`.
        weights: layer name -> entry of the metadata; empty where only the figures are known.
    """
    from genie_cli.artifacts.network_size import packed_bytes
    from genie_cli.commands.display import file_size, rows_table

    if not units:
        return
    rows = []
    for unit in units:
        known = [weights[layer] for layer in unit.layers if layer in weights]
        bits = ", ".join(str(bits) for bits in sorted({entry.bits for entry in known}))
        size = file_size(sum(packed_bytes(entry) for entry in known)) if known else ""
        errors = ["" if error is None else f"{error:.4f}" for error in (unit.relative_error, unit.held_out_error)]
        rows.append([unit.name, ", ".join(unit.layers), unit.num_steps, bits, size, *errors])
    columns = ["unit", "layers", "steps", "W bits", "weights", "error", "held out"]
    rows_table("Reconstruction units", columns, rows, {"steps", "W bits", "weights", "error", "held out"})


def plain(value: Any) -> str:
    """A field of metadata for a reader: ``size 16, mean [0.5]`` of a mapping; an oblong size is ``360x480``."""
    if isinstance(value, dict):
        return ", ".join(
            f"{key} {by(item) if key in _SIZES and isinstance(item, list) else plain(item)}"
            for key, item in value.items()
        )
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    return "none" if value is None else str(value)


def by(sides: Sequence[int]) -> str:
    """``64x3x7x7``."""
    return "x".join(map(str, sides))
