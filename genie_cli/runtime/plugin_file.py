"""Files of the user's that register things: ``--plugin FILE.py``."""

from __future__ import annotations

from pathlib import Path

from genie_cli.errors import InputError
from genie_cli.runtime.registered import all_registered
from genie_cli.runtime.user_code import run_user_file


def load_plugin(path: Path) -> None:
    """Run a plug-in, which registers what it has.

    Raises:
        InputError: the file does not exist, fails, or registers nothing.
        UsageError: a name that is taken.
    """
    before = all_registered()
    run_user_file(path, "Plug-in")
    if all_registered() == before:
        raise InputError(
            f"Plug-in {path} registers nothing: decorate a function or class with genie_cli.synthesis_term, "
            "genie_cli.rounding or genie_cli.preset."
        )
