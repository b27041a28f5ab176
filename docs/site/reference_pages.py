"""Directives of the site that write reference pages from what the program itself reads: they cannot be out of date.

``configuration-keys`` writes every key of every params section, from the fields that make ``genie config``, the
options and ``--help``. ``command-options`` writes the options of every command, as ``--help`` tells them.
"""

from __future__ import annotations

import re
from typing import Any

import annotated_types
import typer.main
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from genie_cli.app import app as command_line
from genie_cli.config import SECTIONS
from genie_cli.config.fields import SchemaField, section_fields
from genie_cli.config.params import yaml_text

_BOUNDS = {
    annotated_types.Ge: ("ge", "at least"),
    annotated_types.Gt: ("gt", "more than"),
    annotated_types.Le: ("le", "at most"),
    annotated_types.Lt: ("lt", "less than"),
}
"""Bound of a field -> its attribute, and the words for it."""


def configuration_markdown() -> str:
    """Every section as a heading, and every key in it with its default, its bounds, its option and its sentences."""
    return "\n\n".join(f"## `{section}`\n\n{_section(section)}" for section in SECTIONS)


def _section(section: str) -> str:
    defaults = SECTIONS[section].model_construct().model_dump(mode="json")
    return "\n\n".join(_key(section, field, defaults[name]) for name, field in section_fields(section).items())


def _key(section: str, field: SchemaField, default: Any) -> str:
    facts = [f"default `{yaml_text(default)}`", *_bounds(section, field.name)]
    if field.flag is not None:
        name = field.name.replace("_", "-")
        option = field.flag.names or (f"--{name}/--no-{name}" if field.kind == "bool" else f"--{name}")
        facts.append(f"option `{option}`")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in field.text.split("\n\n"))
    body = "\n\n".join([", ".join(facts), *([_as_text(text)] if text else [])])
    return f"`{field.name}`\n: " + body.replace("\n", "\n  ")


def _bounds(section: str, name: str) -> list[str]:
    found = []
    for mark in SECTIONS[section].model_fields[name].metadata:
        if type(mark) in _BOUNDS:
            attribute, words = _BOUNDS[type(mark)]
            found.append(f"{words} {getattr(mark, attribute)}")
    return found


def _as_text(text: str) -> str:
    """Text in which Markdown sees nothing but code in backticks."""
    parts = text.split("`")
    return "`".join(
        re.sub(r"([\\*_<>\[\]#{}|$])", r"\\\1", part) if i % 2 == 0 else part for i, part in enumerate(parts)
    )


def commands_markdown() -> str:
    """Every command as a heading, with its sentence, its arguments and its options."""
    group: Any = typer.main.get_command(command_line)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    lines = [f"## `genie {name}`", _as_text(str(command.help).strip())]
    for parameter in command.params:
        names = "/".join([*parameter.opts, *parameter.secondary_opts])
        if parameter.param_type_name == "argument":
            names = (parameter.metavar or parameter.name).upper()
        text = _as_text(str(getattr(parameter, "help", None) or "").replace("\\[", "["))
        lines.append(f"`{names}`\n: {text or 'Needed.'}")
    return "\n\n".join(lines)


class ConfigurationKeys(SphinxDirective):
    """``{configuration-keys}``: see `configuration_markdown`."""

    def run(self) -> list[nodes.Node]:
        """Write the page."""
        return self.parse_text_to_nodes(configuration_markdown(), allow_section_headings=True)


class CommandOptions(SphinxDirective):
    """``{command-options}``: see `commands_markdown`."""

    def run(self) -> list[nodes.Node]:
        """Write the page."""
        return self.parse_text_to_nodes(commands_markdown(), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of the directives."""
    app.add_directive("configuration-keys", ConfigurationKeys)
    app.add_directive("command-options", CommandOptions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
