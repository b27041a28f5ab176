"""The amount that a command tells: ``--quiet`` and ``--verbose``, which every command has."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_type_hints

import typer

from genie_cli.errors import UsageError

Level = Literal["quiet", "normal", "verbose"]

_QUIET = typer.Option("--quiet", "-q", help="On standard error, only warnings and errors.")
_VERBOSE = typer.Option(
    "--verbose", "-v", help="On standard error also the configuration, versions, times of steps, and an error's origin."
)
_OPTIONS = {"quiet": Annotated[bool, _QUIET], "verbose": Annotated[bool, _VERBOSE]}

_level: Level = "normal"


def is_quiet() -> bool:
    """True if only warnings and errors are told."""
    return _level == "quiet"


def is_verbose() -> bool:
    """True if details are told."""
    return _level == "verbose"


def set_level(level: Level) -> None:
    """Tell as much from now on."""
    global _level  # one command line in one process
    _level = level


def with_verbosity(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the two options behind its own."""
    hints = get_type_hints(command, include_extras=True)
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
        for parameter in inspect.signature(command).parameters.values()
    ]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in _OPTIONS.items()
    ]

    @functools.wraps(command)
    def run(*, quiet: bool, verbose: bool, **values: Any) -> None:
        if quiet and verbose:
            raise UsageError("--quiet and --verbose are opposites: give one of them.")
        set_level("quiet" if quiet else "verbose" if verbose else "normal")
        command(**values)

    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(run)["__signature__"] = inspect.Signature(parameters)
    return run
