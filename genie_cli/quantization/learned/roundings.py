"""The ways that weights learn, by name: those of genie and those that users register."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genie_cli.errors import InputError, look_up
from genie_cli.quantization.learned.soft_rounding import SoftRoundedWeight
from genie_cli.quantization.learned.straight_through_weight import StraightThroughWeight
from genie_cli.quantization.learned.weight import LearnedWeight, WeightParts
from genie_cli.runtime.registered import registered, with_registered
from genie_cli.student.formats import NumberFormat, weight_format
from genie_cli.student.grid import weight_grid

MakeWeight = Callable[[Tensor, Tensor, Tensor, NumberFormat, Tensor], LearnedWeight]
"""From weight, step sizes, zero points, format and scale of the offsets, as `LearnedWeight` takes them."""


@dataclass(frozen=True)
class Rounding:
    """A way that weights learn.

    Attributes:
        make: a weight at its start.
        learns_elements: softbits or shifts learn, with `rounding_lr`.
        learns_step_sizes: step sizes learn, with `weight_step_lr`.
        decays: the rate of the elements falls to 0 along a cosine.
    """

    make: MakeWeight
    learns_elements: bool = True
    learns_step_sizes: bool = True
    decays: bool = False


ROUNDINGS = {
    "nearest": Rounding(StraightThroughWeight, learns_elements=False, learns_step_sizes=False),
    "adaround": Rounding(SoftRoundedWeight, learns_step_sizes=False),
    "genie": Rounding(SoftRoundedWeight),
    "adaquant": Rounding(StraightThroughWeight, decays=True),
}


def find_rounding(name: str) -> Rounding:
    """The rounding called `name`.

    Raises:
        UsageError: unknown name.
    """
    found: Rounding = look_up(with_registered(ROUNDINGS, "rounding"), "rounding", name)
    return found


def check_rounding(name: str) -> None:
    """Find out, before the work, whether a rounding of the user's gives weights and codes as it has to.

    Raises:
        UsageError: unknown name.
        InputError: it fails on a small weight, or gives another shape, or NaN.
    """
    rounding, own = find_rounding(name), registered("rounding").get(name)
    if own is None:
        return
    weight = torch.linspace(-1, 1, 12).view(3, 2, 2, 1)
    format = weight_format(4)
    scale, zero_point = weight_grid(weight, format, "minmax")
    made = rounding.make(weight, scale, zero_point, format, scale)
    if made.elements.shape != weight.shape:
        raise InputError(
            f"Rounding '{own.code.name}' learns elements of {_shape(made.elements)} for a weight of {_shape(weight)}: "
            "give one for each of its numbers."
        )
    values = made.elements.sigmoid() if made.has_softbits else made.elements
    parts = made.parts(values, made.start)
    if not isinstance(parts, WeightParts):
        raise InputError(
            f"Rounding '{own.code.name}' must return genie_cli.WeightParts from parts(), it returned "
            f"{type(parts).__name__}."
        )
    given = {**parts._asdict(), "codes": made.codes(made.start)}
    for part, value in given.items():
        if not isinstance(value, Tensor) or value.shape != weight.shape or not value.isfinite().all():
            told = f"a tensor of {_shape(value)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"Rounding '{own.code.name}' must give a {part} of finite numbers in the weight's shape, "
                f"{_shape(weight)}; it gave {told}."
            )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "no axes"
