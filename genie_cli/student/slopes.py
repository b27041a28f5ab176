"""Slopes of leaky rectifiers as integers: rounded once, before anything learns."""

from __future__ import annotations

from typing import Literal

from torch import fx

from genie_cli.models.graph.slopes import slopes
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.student.formats import SLOPE_FORMAT
from genie_cli.student.grid import weight_grid
from genie_cli.student.modules import IntegerWeight


def integer_slopes(folded: fx.GraphModule, slope_range: Literal["search", "minmax"]) -> dict[str, IntegerWeight]:
    """Name -> slopes rounded to their nearest codes, each tensor on the grid that `slope_range` finds for it.

    They are no part of what reconstruction learns: units are learned with the rounded ones.
    """
    rounded = {}
    for slope in slopes(folded):
        values = get_tensor(folded, slope.key).detach().cpu()
        rounded[slope.name] = IntegerWeight.nearest(
            values, *weight_grid(values, SLOPE_FORMAT, slope_range), SLOPE_FORMAT
        )
    return rounded
