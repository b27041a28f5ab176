"""The errors a user can see, each with the exit code of its class.

A message names the thing, its value and the fix, in one sentence or two. ``app.py`` is the one
place that turns these into a line on stderr and an exit code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class GenieError(Exception):
    """Base of every error that the user can fix."""

    exit_code = 1
    is_shared: bool | None = None
    """True if all processes of the run have this error, so that one prints it for all; None: assumed, not known."""


class UsageError(GenieError):
    """Wrong use: unknown option, model, preset, scheme or params key, or a value out of range."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration that cannot be used. Its message names keys, as params files and the library have them."""


class InputError(GenieError):
    """Bad input: an artifact, weights, image or data that cannot be used, or an unwritable output."""

    exit_code = 3


class DiskFullError(InputError):
    """A file cannot grow: a full disk, a quota, a limit on the size of files."""


class DeviceError(GenieError):
    """No suitable device."""

    exit_code = 4


class WorkerError(GenieError):
    """Another process of the run has ended."""

    exit_code = 5
    is_shared = False


class NumbersError(GenieError):
    """NaN or infinity where finite numbers are needed, after the retry in float32 too."""

    exit_code = 6


class AgreementError(GenieError):
    """An exported file that does not answer as the network in genie does."""

    exit_code = 7


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name: ``" Did you mean 'x'?"``, or ``""`` where no known name is similar."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def unknown_name(what: str, name: object, known: Iterable[str], told: str | None = None) -> UsageError:
    """The error of a mistyped name: ``Unknown preset 'zero': genie, zeroq. Did you mean 'zeroq'?``.

    Args:
        what: kind of thing.
        name: what was given.
        known: the names, of which the nearest is the hint.
        told: words behind the name, where they are not all names.
    """
    names = list(known)
    told = f": {', '.join(names)}" if told is None else told
    return UsageError(f"Unknown {what} '{name}'{told}.{nearest(str(name), names)}")


def look_up(known: Mapping[str, T], what: str, name: str, told: str | None = None) -> T:
    """The entry of `known` called `name`.

    Raises:
        UsageError: unknown name, see `unknown_name`.
    """
    if name not in known:
        raise unknown_name(what, name, known, told)
    return known[name]
