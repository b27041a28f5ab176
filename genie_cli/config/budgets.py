"""A budget: a named number of images and steps, for both stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Budget:
    """The work that the stages do.

    Attributes:
        summary: what it is for, in one line.
        synthesize: keys of `genie synthesize`, over the preset's and under the params file and the flags.
        quantize: the same of `genie quantize`.
    """

    summary: str
    synthesize: Mapping[str, Any]
    quantize: Mapping[str, Any]


def _budget(summary: str, num_images: int, steps_per_batch: int, steps_per_unit: int) -> Budget:
    return Budget(summary, {"num_images": num_images, "num_steps": steps_per_batch}, {"num_steps": steps_per_unit})


BUDGETS = {
    "quick": _budget("a first look, or 4 bits and more", 256, 120, 200),
    "balanced": _budget("most of what the paper's budget gives, in a thirtieth of its steps", 1024, 250, 1000),
    "paper": _budget("the images and steps of the paper", 1024, 4000, 20000),
}


def budget_options(section: str, name: str | None) -> dict[str, Any]:
    """The keys that a budget sets in a section; none where none is named.

    Args:
        section: synthesize or quantize; others have no budget.
        name: its name, known or not: what is not known is refused with the field's own message.
    """
    return dict(getattr(BUDGETS[name], section, {})) if name in BUDGETS else {}
