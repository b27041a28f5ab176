"""``--plugin FILE.py``: what it registers holds for the one command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genie_cli.runtime.registered import registrations_restored


@contextmanager
def plugins_loaded(flags: Mapping[str, Any], section: Mapping[str, Any]) -> Iterator[None]:
    """Load the plug-ins of the command line, else those of the params file.

    Args:
        flags: key -> value of the options that were given.
        section: the same of the params file.

    Raises:
        InputError: a file that does not exist, fails, or registers nothing.
        UsageError: a name that is taken.
    """
    files = flags.get("plugins") or section.get("plugins") or []
    with registrations_restored():
        if files:
            from genie_cli.runtime.plugin_file import load_plugin

            for file in [files] if isinstance(files, str) else files:
                load_plugin(Path(str(file)))
        yield
