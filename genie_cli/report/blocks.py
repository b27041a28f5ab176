"""The blocks of a page: sections of parts, tables of cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: shown.
        value: number to sort by; None: the text.
        link: id of a section on the page.
    """

    text: str
    value: float | None = None
    link: str = ""


@dataclass(frozen=True)
class Column:
    """The heading of a column, and whether it holds numbers."""

    title: str
    is_number: bool = False


@dataclass(frozen=True)
class Table:
    """A table that can be sorted."""

    title: str
    columns: tuple[Column, ...]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Picture:
    """A picture inside the page."""

    source: str
    alt: str
    caption: str
    width: int
    height: int


@dataclass
class Part:
    """A part of a section; whatever it has is shown in the order of the fields."""

    title: str = ""
    note: str = ""
    images: list[Picture] = field(default_factory=list)
    charts: list[tuple[Markup, str]] = field(default_factory=list)
    id: str = ""
    choice_label: str = ""
    choices: list[tuple[str, Markup]] = field(default_factory=list)
    table: Table | None = None
    is_folded: bool = False


@dataclass
class Section:
    """A section of the page."""

    id: str
    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)


def columns_of(*titles: str) -> tuple[Column, ...]:
    """Columns; a title that begins with ``#`` is that of numbers."""
    return tuple(Column(title.removeprefix("#"), title.startswith("#")) for title in titles)


def without_empty(columns: tuple[Column, ...], rows: list[list[Cell]]) -> tuple[tuple[Column, ...], list[list[Cell]]]:
    """The same without columns of which no row has anything."""
    kept = [place for place in range(len(columns)) if any(row[place].text for row in rows)]
    return tuple(columns[place] for place in kept), [[row[place] for place in kept] for row in rows]


def is_number(value: Any) -> bool:
    """True for a number that is no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number_cell(value: Any, form: str) -> Cell:
    """A number as text of `form`, sorted by its value; nothing where there is none."""
    return Cell(format(value, form), float(value)) if is_number(value) else Cell("")


def plain_text(value: Any) -> str:
    """A value of a configuration as text."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain_text, value))
    return "none" if value is None else str(value)
