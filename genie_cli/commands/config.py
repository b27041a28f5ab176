"""``genie config``: the params section of a command, as a file to start from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genie_cli.commands.completion import any_preset, sections
from genie_cli.commands.options import AsJson
from genie_cli.errors import UsageError, look_up

if TYPE_CHECKING:
    from genie_cli.config.presets import Preset


def config(
    command: Annotated[
        str,
        typer.Argument(
            metavar="COMMAND",
            help="synthesize, sensitivity, quantize, evaluate or export.",
            autocompletion=sections,
        ),
    ],
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="Set every key to the value that it has with this preset.",
            show_default=False,
            rich_help_panel="Recipe",
            autocompletion=any_preset,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a command's section for --params: every key, commented out, with its default and its meaning."""
    from genie_cli.config import SECTIONS

    commands = {name: schema for name, schema in SECTIONS.items() if name != "model"}
    schema = look_up(commands, "command", command, f": those with a params section are {', '.join(commands)}")
    if preset is None:
        lines = [
            f"# Every key of `genie {command} --params FILE`, with its default.",
            "# As it stands the file sets nothing: delete the first '# ' of a line to set its key.",
        ]
        values = schema.model_construct().model_dump(mode="json")
    else:
        chosen = _find_preset(command, preset)
        lines = [f"# Every key of `genie {command} --params FILE`, with the values of preset {preset}."]
        lines += [f"# It needs {need}." for need in chosen.needs.values()]
        values = schema.model_construct(**{**chosen.options, "preset": preset}).model_dump(mode="json")
    if as_json:
        typer.echo(json.dumps({command: values}, indent=2))
        return
    typer.echo("\n".join([*lines, f"{command}:", *_key_lines(command, values, is_commented=preset is None)]))


def _find_preset(command: str, preset: str) -> Preset:
    from genie_cli.quantization import presets as quantization
    from genie_cli.synthesis import presets as synthesis

    if command == "evaluate":
        raise UsageError(f"genie evaluate has no presets: leave out --preset {preset}.")
    return synthesis.find_preset(preset) if command == "synthesize" else quantization.find_preset(preset)


def _key_lines(command: str, values: dict[str, Any], is_commented: bool) -> list[str]:
    """A line per key: its value in YAML, and the first sentence of its documentation."""
    from genie_cli.config.fields import section_fields
    from genie_cli.config.params import yaml_text

    mark = "# " if is_commented else ""
    return [
        f"  {mark}{key}: {yaml_text(values[key])}  # {field.sentence}" for key, field in section_fields(command).items()
    ]
