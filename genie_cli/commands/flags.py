"""Options that are fields of a configuration: a command's signature is made of the schemas' source.

A field with a `Flag` is an option; its name, type, help and default follow from the field, so that an option is
added or changed there alone. The schemas are read, not imported, so that ``--help`` is fast.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from genie_cli.commands.completion import completion_of
from genie_cli.config.fields import SchemaField, section_fields
from genie_cli.config.marks import PANELS, Flag
from genie_cli.errors import ConfigError

Used = dict[str, dict[str, Any]]
"""Params section -> key -> value, of the options that were given on the command line."""

_KINDS: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str, "Path": Path}


@dataclass(frozen=True)
class Fields:
    """The fields of one params section that are options of a command.

    Attributes:
        section: name of the section.
        only: these; default all that have a flag.
        without: all but these.
        several_networks: `Flag.several` holds: the option is given once per network.
        last: these are shown after the command's own options.
    """

    section: str
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    several_networks: bool = False
    last: tuple[str, ...] = ()

    def chosen(self) -> list[tuple[SchemaField, Flag]]:
        """Fields with their flags, in the order in which ``--help`` shows them."""
        flagged = [(field, field.flag) for field in section_fields(self.section).values() if field.flag is not None]
        chosen = [
            (field, flag)
            for field, flag in flagged
            if field.name not in self.without and (not self.only or field.name in self.only)
        ]
        ordered = [pair for pair in chosen if not pair[1].before]
        for field, flag in chosen:
            if flag.before:
                names = [other.name for other, _ in ordered]
                ordered.insert(names.index(flag.before), (field, flag))
        return ordered


def takes(*sections: Fields) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command: its first parameter, a `Used`, becomes an option per field; its other ones stay.

    Args:
        sections: the fields, each of a name of its own.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        options = [
            (fields, _parameter(fields.section, field, flag, fields.several_networks))
            for fields in sections
            for field, flag in fields.chosen()
        ]

        typed = {
            field.name: max(_names(field, flag), key=len)
            for fields in sections
            for field, flag in fields.chosen()
            if field.kind != "bool"  # no value stands behind those
        }

        @functools.wraps(command)
        def run(**values: Any) -> None:
            used: Used = {fields.section: {} for fields in sections}
            for fields, parameter in options:
                value = values.pop(parameter.name)
                if value not in (None, [], ()):
                    used[fields.section][parameter.name] = value
            given = {key for keys in used.values() for key in keys}
            try:
                command(used, **values)
            except ConfigError as error:
                raise _as_typed(error, used, given, typed) from error

        parameters = [
            *(parameter for fields, parameter in options if parameter.name not in fields.last),
            *_own_parameters(command),
            *(parameter for fields, parameter in options if parameter.name in fields.last),
        ]
        parameters.sort(key=_place)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        vars(run)["__signature__"] = inspect.Signature(parameters)
        return run

    return decorate


def _as_typed(
    error: ConfigError, sections: Collection[str], given: Collection[str], options: Mapping[str, str]
) -> ConfigError:
    """The error with options for keys and no section, where one of the keys in its message was given as an option.

    Args:
        error: names keys.
        sections: names of params sections, which may stand in front.
        given: keys that were given as options.
        options: key -> option of the command.
    """
    mentioned = re.compile(rf"\b({'|'.join(sorted(options, key=len, reverse=True))})\b(?P<value> = )?")

    def option(found: re.Match[str]) -> str:
        if found["value"]:
            return f"{options[found[1]]} "
        return options[found[1]] if "_" in found[1] else found[0]  # without a value, `images` is a word

    message = str(error)
    if not any(found[1] in given for found in mentioned.finditer(message)):
        return error
    section, colon, rest = message.partition(": ")
    return ConfigError(mentioned.sub(option, rest if colon and section in sections else message))


def _own_parameters(command: Callable[..., None]) -> list[inspect.Parameter]:
    """The parameters after the first one."""
    hints = get_type_hints(command, include_extras=True)
    return [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
        for parameter in list(inspect.signature(command).parameters.values())[1:]
    ]


def _place(parameter: inspect.Parameter) -> int:
    """The panel's place among `PANELS`; arguments, which have no panel, come first."""
    (option,) = parameter.annotation.__metadata__
    return PANELS.index(option.rich_help_panel) if option.rich_help_panel else -1


def _parameter(section: str, field: SchemaField, flag: Flag, several_networks: bool) -> inspect.Parameter:
    """A parameter that typer makes an option of; its value is None where it is not given."""
    repeated = flag.repeated or (several_networks and bool(flag.several))
    option = typer.Option(
        *_names(field, flag),
        help=_help(field, flag, several_networks),
        rich_help_panel=flag.panel,
        show_default=False,
        metavar=flag.metavar,
        autocompletion=completion_of(section, field),
    )
    kind: Any = list[str] if repeated else _KINDS[field.kind]
    annotation: Any = Annotated[kind | None, option]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _names(field: SchemaField, flag: Flag) -> list[str]:
    if flag.names:
        return flag.names.split()
    name = field.name.replace("_", "-")
    return [f"--{name}/--no-{name}" if field.kind == "bool" else f"--{name}"]


def _help(field: SchemaField, flag: Flag, several_networks: bool) -> str:
    """The field's sentence, and its default where there is one to tell."""
    text = field.sentence
    if several_networks and flag.several:
        text = f"{text.removesuffix('.')}; {flag.several}."
    default = flag.default
    if default is None and field.kind == "bool":
        default = "" if flag.names else "on" if field.default else "off"
    elif default is None:
        default = "" if field.default is None else str(field.default)
    return f"{text} \\[default: {default}]" if default else text
