"""The first lines of a command, before there is any progress: what it loads, and what it captures."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

import typer

from genie_cli.commands.verbosity import is_quiet, is_verbose

if TYPE_CHECKING:
    from genie_cli.config import ModelConfig
    from genie_cli.models.network_input import RecordedInput
    from genie_cli.models.teacher import Teacher


_is_program = False
"""The process is that of a command, which has nothing else to say before its progress."""


@contextmanager
def step_told(words: str) -> Iterator[None]:
    """Around a step of some seconds: its name is told as it begins, and with ``--verbose`` its time."""
    _say(words)
    started = time.monotonic()
    yield
    if is_verbose():
        _say(f"{words}: {time.monotonic() - started:.1f} s")


def open_network(config: ModelConfig, recorded: RecordedInput | None = None) -> Teacher:
    """The network of a command, captured, which takes seconds: see `models.zoo.load_teacher`."""
    from genie_cli.models.zoo import display_name, load_teacher

    with step_told(f"capturing {display_name(config.name)}"):
        return load_teacher(config, recorded)


class _LoadingTorch(MetaPathFinder):
    """Finds no module, and says when torch is looked for, whose import takes seconds; once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None, so that Python's own finders are asked."""
        if fullname == "torch":
            sys.meta_path.remove(self)
            _say("loading torch")
        return None


def tell_of_torch() -> None:
    """Say when torch begins to be imported, whichever command does it, and what takes long after it."""
    global _is_program  # a process is a command's from its start
    _is_program = True
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, _LoadingTorch())


def _say(words: str) -> None:
    """A line on standard error, at once, of the first process."""
    if not _is_program or is_quiet() or os.environ.get("RANK", "0") != "0":
        return
    with suppress(OSError):
        typer.echo(words, err=True)
