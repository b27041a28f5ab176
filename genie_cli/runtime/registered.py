"""Synthesis terms, roundings and presets of the user's own, by name.

An artifact says the names and the hashes of the files that they come from. It can name no file to load.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from genie_cli.errors import UsageError

if TYPE_CHECKING:  # it imports torch, and presets are listed without
    from genie_cli.runtime.user_code import UserCode

Kind = Literal["synthesis term", "rounding", "synthesis preset", "quantization preset"]


@dataclass(frozen=True)
class Registration:
    """Something of the user's own.

    Attributes:
        kind: what it is.
        name: what options call it.
        value: the thing itself.
        code: the user's function or class, and the file that it comes from.
    """

    kind: Kind
    name: str
    value: Any
    code: UserCode


_REGISTERED: dict[tuple[Kind, str], Registration] = {}


def register(added: Registration, own: Iterable[str]) -> None:
    """Add a registration; one of the same name and file is replaced, as where a cell of a notebook runs again.

    Args:
        added: the registration.
        own: names of genie's own things of this kind.

    Raises:
        UsageError: the name is taken, or is none.
    """
    name, where = added.name, added.code.name
    if not name.replace("-", "").replace("_", "").isalnum() or not name[0].isalpha():
        raise UsageError(f"{where} registers a {added.kind} as {name!r}: a name has letters, digits, '-' and '_'.")
    if name in own:
        raise UsageError(f"{where} registers a {added.kind} as '{name}', as one of genie's own is called: rename it.")
    earlier = _REGISTERED.get((added.kind, name))
    if earlier is not None and earlier.code.file != added.code.file:
        raise UsageError(f"{where} registers a {added.kind} as '{name}', as {earlier.code.name} does: rename one.")
    _REGISTERED[added.kind, name] = added


def registered(kind: Kind) -> dict[str, Registration]:
    """Name -> registration of one kind, in their order."""
    return {name: found for (of, name), found in _REGISTERED.items() if of == kind}


def all_registered() -> tuple[Registration, ...]:
    """All registrations, in their order."""
    return tuple(_REGISTERED.values())


def with_registered(own: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """Name -> value of genie's own things of a kind and of the user's."""
    return {**own, **{name: found.value for name, found in registered(kind).items()}}


def code_hashes(used: Iterable[tuple[Kind, str]]) -> dict[str, str | None]:
    """Kind and name -> hash of the file of those things that are the user's, for metadata; None: it has no file."""
    return {f"{kind} {name}": _REGISTERED[kind, name].code.sha256 for kind, name in used if (kind, name) in _REGISTERED}


@contextmanager
def registrations_restored() -> Iterator[None]:
    """Around a command: what it registers holds for it alone."""
    before = dict(_REGISTERED)
    try:
        yield
    finally:
        _REGISTERED.clear()
        _REGISTERED.update(before)
