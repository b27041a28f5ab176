"""``genie presets``: the named recipes and where they come from."""

from __future__ import annotations

import json

import typer

from genie_cli.commands import options as opt


def presets(as_json: opt.AsJson = False) -> None:
    """List the presets of synthesize and quantize, each with its paper."""
    from genie_cli.commands.display import rows_table
    from genie_cli.quantization.presets import PRESETS as QUANTIZATION
    from genie_cli.synthesis.presets import PRESETS as SYNTHESIS

    groups = {"synthesize": SYNTHESIS, "quantize": QUANTIZATION}
    if as_json:
        described = {
            command: [
                {"name": name, "summary": preset.summary, "source": preset.source, "options": dict(preset.options)}
                for name, preset in group.items()
            ]
            for command, group in groups.items()
        }
        typer.echo(json.dumps(described, indent=2))
        return
    for command, group in groups.items():
        rows = [[name, preset.summary, preset.source] for name, preset in group.items()]
        rows_table(f"genie {command} --preset", ["name", "what it is", "source"], rows)
