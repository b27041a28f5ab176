"""``genie inspect``: what a model or an artifact is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from genie_cli.commands import options as opt


def inspect(
    subject: Annotated[
        str,
        typer.Argument(metavar="SPEC-OR-ARTIFACT", help="A model SPEC, an image set, or a quantized folder or file."),
    ],
    weights: opt.Weights = None,
    input_size: opt.InputSize = None,
    num_channels: opt.NumChannels = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    protocol: Annotated[str, typer.Option("--protocol", help="Who gets which bits: genie, qdrop, ait.")] = "genie",
    weight_bits: Annotated[int, typer.Option("--weight-bits", min=2, max=8, help="Target bits of the weights.")] = 4,
    activation_bits: Annotated[
        int, typer.Option("--activation-bits", min=2, max=8, help="Target bits of the activations.")
    ] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Show a model's layers, batch norms, strided convolutions, units and bits, or what an artifact is."""
    path = Path(subject)
    if path.is_dir() or path.suffix == ".safetensors":
        _show_artifact(path, as_json)
        return
    from genie_cli.config import Params
    from genie_cli.models.zoo import load_untrained

    config = opt.model_config(
        Params({}),
        {
            "name": subject,
            "weights": weights,
            "input_size": input_size,
            "num_channels": num_channels,
            "mean": mean,
            "std": std,
        },
    )
    from genie_cli.commands.describe import describe_model

    description = describe_model(load_untrained(config), protocol, weight_bits, activation_bits)
    if as_json:
        typer.echo(json.dumps(description, indent=2))
    else:
        _show_model(description)


def _show_artifact(path: Path, as_json: bool) -> None:
    from genie_cli.artifacts.metadata import sniff
    from genie_cli.commands.display import rows_table, summary

    fields = sniff(path)
    if as_json:
        typer.echo(json.dumps(fields, indent=2, sort_keys=True))
        return
    tables = {key: fields.pop(key) for key in ("weights", "activations") if key in fields}
    summary(str(path), {key: json.dumps(v) if isinstance(v, dict | list) else v for key, v in fields.items()})
    if "weights" in tables:
        rows = [[name, "x".join(map(str, entry["shape"])), entry["bits"]] for name, entry in tables["weights"].items()]
        rows_table("Weights", ["layer", "shape", "bits"], rows, {"bits"})
    if "activations" in tables:
        rows = [
            [name, entry["bits"], "signed" if entry["signed"] else "unsigned"]
            for name, entry in tables["activations"].items()
        ]
        rows_table("Activations", ["site", "bits", "grid"], rows, {"bits"})


def _show_model(description: dict[str, Any]) -> None:
    from genie_cli.commands.display import rows_table, summary

    summary(description["model"], {key: description[key] for key in ("input", "classes", "parameters", "protocol")})
    rows_table(
        "Weight layers",
        ["layer", "kind", "weight", "stride", "W bits", "input site", "A bits", "batch norm"],
        [
            [
                row[key]
                for key in (
                    "name",
                    "kind",
                    "shape",
                    "stride",
                    "weight_bits",
                    "input_site",
                    "activation_bits",
                    "batch_norm",
                )
            ]
            for row in description["layers"]
        ],
        {"W bits", "A bits"},
    )
    rows_table(
        "Reconstruction units",
        ["unit", "layers"],
        [[unit["name"], ", ".join(unit["layers"])] for unit in description["units"]],
    )
    summary(
        "Structure",
        {
            "batch norms": len(description["batch_norms"]),
            "strided convolutions (swing)": ", ".join(description["strided"]) or "none",
            "batch norms that cannot be folded": "; ".join(
                f"{k}: {v}" for k, v in list(description["unfolded"].items())[:5]
            )
            or "none",
            "activation sites": len(description["sites"]),
        },
    )
