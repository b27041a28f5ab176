"""The order of class folders, which says which label each is: as text, or by the numbers in their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

ClassOrder = Literal["text", "natural"]
_DIGITS = re.compile(r"([0-9]+)")


def in_order(names: Sequence[str], order: ClassOrder) -> list[str]:
    """Class names in their order: ``text`` sorts 0, 1, 10, 2, and ``natural`` sorts 0, 1, 2, 10."""
    return sorted(names, key=_by_numbers) if order == "natural" else sorted(names)


def order_warnings(names: Sequence[str]) -> tuple[str, ...]:
    """The warning for class names that the two orders sort differently; none where both are one."""
    for label, (text, natural) in enumerate(zip(in_order(names, "text"), in_order(names, "natural"), strict=True)):
        if text != natural:
            warning = (
                f"class folders are labelled in the order of their names as text: label {label} is '{text}', and by "
                f"the numbers in their names it would be '{natural}'. --class-order natural labels them by number, "
                "--class-order text as now."
            )
            return (warning,)
    return ()


def _by_numbers(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = _DIGITS.split(name)  # text and numbers by turns
    return [(int(part), "") if place % 2 else (0, part) for place, part in enumerate(parts)], name
