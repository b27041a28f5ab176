"""Marks of a configuration's fields: that one is an option of a command, that one does not determine the result.

They stand in a field's annotation: ``num_images: Annotated[int, Flag("Recipe", "--n --num-images")] = 1024``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Panel = Literal["Model", "Images", "Data", "Recipe", "Run", "Output"]
PANELS: tuple[Panel, ...] = get_args(Panel)
"""Headings of ``--help``, in their order."""


@dataclass(frozen=True)
class Flag:
    """The command-line option of a field.

    All else follows from the field: ``num_steps`` is ``--num-steps``, a bool ``swing`` is ``--swing/--no-swing``,
    the help is the first sentence of the field's docstring (without square brackets, which would be markup), and the
    default is the field's.

    Attributes:
        panel: heading of ``--help`` that it is shown under.
        names: the option's names, divided by blanks, where they are not the field's own.
        default: words for the default, such as ``"the model's own"``; empty: none is told. Else the field's value is
            told, and nothing where that is None.
        metavar: word for the value, where it is not the value's type.
        repeated: may be given more than once.
        before: field of the same panel that it is shown before; else fields are shown in their order, a base class's
            first.
        several: what the help of a command says besides, if the option is given once per network there.
    """

    panel: Panel
    names: str = ""
    default: str | None = None
    metavar: str | None = None
    repeated: bool = False
    before: str = ""
    several: str = ""


@dataclass(frozen=True)
class NotDetermining:
    """A field that does not determine the result: a path, what changes no tensor, or what metadata say by hash."""


NOT_DETERMINING = NotDetermining()
"""The mark itself; `LongStage.determining` leaves out what has it."""
