"""``genie models``: what the zoo knows."""

from __future__ import annotations

import json

import typer

from genie_cli.commands import options as opt


def models(as_json: opt.AsJson = False) -> None:
    """List the networks known by name; others are given as FILE.py:FACTORY."""
    from genie_cli.commands.display import rows_table
    from genie_cli.models.zoo import zoo_entries

    entries = list(zoo_entries())
    if as_json:
        rows = [
            {
                "name": entry.name,
                "origin": entry.origin,
                "input": list(entry.input.shape),
                "num_parameters": entry.num_parameters,
            }
            for entry in entries
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    rows_table(
        "Models",
        ["name", "input", "parameters", "weights"],
        [
            [
                entry.name,
                "x".join(map(str, entry.input.shape)),
                f"{entry.num_parameters:,}" if entry.num_parameters is not None else "",
                entry.origin,
            ]
            for entry in entries
        ],
        {"input", "parameters"},
    )
