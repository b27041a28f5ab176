"""``genie models``: what the zoo knows."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from genie_cli.commands import options as opt

_SHOWN_TAGS = 3


def models(
    timm: Annotated[
        str | None,
        typer.Option(
            help="List timm's networks whose names hold FILTER, or fit it where it has wildcards.", metavar="FILTER"
        ),
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """List the networks known by name; others are given as FILE.py:FACTORY."""
    from genie_cli.commands.display import rows_table
    from genie_cli.models.zoo import zoo_entries

    if timm is not None:
        _show_timm(timm, as_json)
        return
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


def _show_timm(pattern: str, as_json: bool) -> None:
    from genie_cli.commands.display import rows_table
    from genie_cli.models.timm_zoo import entries

    found = entries(pattern)
    if as_json:
        rows = [{"name": each.name, "input": list(each.input), "weights": list(each.tags)} for each in found]
        typer.echo(json.dumps(rows, indent=2))
        return
    more = {
        each.name: f" and {len(each.tags) - _SHOWN_TAGS} more" if len(each.tags) > _SHOWN_TAGS else "" for each in found
    }
    rows_table(
        "timm's networks",
        ["name", "input", "weights"],
        [
            [
                each.name,
                "x".join(map(str, each.input)),
                (", ".join(each.tags[:_SHOWN_TAGS]) or "none") + more[each.name],
            ]
            for each in found
        ],
        {"input"},
    )
