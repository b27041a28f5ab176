"""The files that a command reads, by the options that name them: none of its results may replace one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel


def files_read(params: Path | None, *configs: BaseModel) -> list[tuple[str, Path | str]]:
    """(Option, file or folder) of all that is read.

    Code counts too: the file of ``FILE.py:NAME``, and plug-ins.

    Args:
        params: the params file.
        configs: of the command; their outputs are left out.
    """
    found: list[tuple[str, Path | str]] = [] if params is None else [("--params", params)]
    for config in configs:
        for name, field in type(config).model_fields.items():
            option = _option(name, field.metadata)
            if option is not None:
                found += [(option, path) for path in _paths(getattr(config, name))]
    return found


def _option(name: str, marks: list[Any]) -> str | None:
    """The longest option of a field that is read; None where it has none, or is written."""
    from genie_cli.config.marks import Flag

    flag = next((mark for mark in marks if isinstance(mark, Flag)), None)
    if flag is None or flag.panel == "Output":
        return None
    return max(flag.names.split(), key=len, default="--" + name.replace("_", "-"))


def _paths(value: Any) -> Iterator[Path | str]:
    from genie_cli.runtime.user_code import code_file

    if isinstance(value, tuple):
        for each in value:
            yield from _paths(each)
    elif isinstance(value, Path):
        yield value
    elif isinstance(value, str):
        code = code_file(value)
        if code is not None:
            yield code
        elif value.endswith(".safetensors") or os.path.isfile(value):  # noqa: PTH113 (raises for long texts)
            yield value
