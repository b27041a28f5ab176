"""The user's cache folder: small facts that take a while to find out, and that every run can do without."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from genie_cli.errors import InputError
from genie_cli.runtime.atomic import atomic_write_bytes


def cache_folder() -> Path | None:
    r"""The folder of genie's cache, whether it exists or not; None: the user has no home folder.

    It is ``$XDG_CACHE_HOME/genie`` where the variable is an absolute path, as the XDG specification asks. Else it is
    ``~/.cache/genie``, on macOS ``~/Library/Caches/genie``, on Windows ``%LOCALAPPDATA%\genie\Cache``.
    """
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    if Path(chosen).is_absolute():
        return Path(chosen) / "genie"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "genie"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "genie" / "Cache"
    return home / ".cache" / "genie"


def recall(kind: str, about: Mapping[str, Any]) -> Any:
    """The JSON value that was kept under `kind` and `about`; None: there is none, or its file is damaged.

    Args:
        kind: what it is, a plain word; the file's name begins with it.
        about: all that the value depends on, JSON values.
    """
    path = _path(kind, about)
    if path is None:
        return None
    try:
        found = json.loads(path.read_bytes())
        return found["value"] if found["about"] == about else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def keep(kind: str, about: Mapping[str, Any], value: Any) -> None:
    """Keep a JSON value for `recall`; where the folder cannot be written, nothing is kept."""
    path = _path(kind, about)
    if path is None:
        return
    with suppress(OSError, InputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, json.dumps({"about": about, "value": value}, indent=1, sort_keys=True).encode())


def _path(kind: str, about: Mapping[str, Any]) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    text = json.dumps(about, sort_keys=True)
    return folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
