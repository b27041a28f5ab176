"""The command that people type next, with the options that name the same network."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from genie_cli.config.fields import section_fields

if TYPE_CHECKING:
    from genie_cli.config import ModelConfig

_OWN_DATA = {"digits_resnet": "digits"}
"""Network -> data that comes with genie; those of others are the user's."""
_FOLDER = "imagefolder:FOLDER"


def next_command(command: str, network: ModelConfig, options: Mapping[str, Path | str | None]) -> str:
    """A line that a shell takes: ``genie COMMAND --model NAME ... --option value``.

    Args:
        command: the command.
        network: the network, of which only what was given is repeated.
        options: option -> value; those of None are left out.
    """
    words = ["genie", command]
    for name, field in section_fields("model").items():
        value = getattr(network, name)
        if field.flag is None or (name != "name" and value in (None, False)):
            continue
        option = field.flag.names or f"--{name.replace('_', '-')}"
        words.append(option)
        if value is not True:
            words.append(_text(name, value))
    for option, value in options.items():
        if value is not None:
            words += [option, str(value)]
    return shlex.join(words)


def data_for(network: ModelConfig) -> str:
    """The data to evaluate a network on, as far as that can be known."""
    return _OWN_DATA.get(network.name, _FOLDER)


def _text(name: str, value: object) -> str:
    if name == "input_size":
        from genie_cli.config.image_size import size_text

        return size_text(value)  # type: ignore[arg-type]
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
