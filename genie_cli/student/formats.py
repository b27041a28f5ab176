"""Number formats as values: the integers that a quantized tensor is stored in, and what shares a step size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genie_cli.config import WeightGrid

Granularity = Literal["per tensor", "per channel"]


@dataclass(frozen=True)
class NumberFormat:
    """The integer format of a tensor (Nagel et al. 2021, arXiv 2106.08295, section 2.2).

    Frozen and hashable, so that tables can be keyed by it. Shapes of the scale:

    - per channel, axis 0: weight ``[O, I, kH, kW]`` -> scale ``[O, 1]``; weight ``[O, I]`` -> scale ``[O, 1]``
    - per tensor: activation ``[B, C, H, W]`` -> step size ``[1]``; slopes ``[C]`` -> scale ``[1, 1]``

    >>> str(weight_format(4)), weight_format(4).quant_min, weight_format(4).quant_max
    ('uint4 per channel, axis 0, asymmetric', 0, 15)
    >>> str(weight_format(8, "symmetric")), weight_format(8, "symmetric").quant_min
    ('int8 per channel, axis 0, symmetric', -128)
    >>> str(activation_format(4, signed=True)), activation_format(4, signed=True).quant_min
    ('int4 per tensor, symmetric', -8)

    Attributes:
        bits: bits of a code, 1 or more.
        signed: there are negative codes.
        symmetric: code 0 stands for zero, and there is no zero point.
        granularity: what shares one step size.
        axis: the axis of the channels, 0 or more; None per tensor.

    Raises:
        ValueError: bits or axis out of range, or an axis that the granularity does not go with.
    """

    bits: int
    signed: bool
    symmetric: bool
    granularity: Granularity
    axis: int | None = None

    def __post_init__(self) -> None:
        """Refuse fields that do not fit together."""
        if self.bits < 1:
            raise ValueError(f"bits must be 1 or more, got {self.bits}")
        if (self.axis is None) != (self.granularity == "per tensor"):
            raise ValueError(f"axis must be given per channel and None per tensor, got {self.axis} {self.granularity}")
        if self.axis is not None and self.axis < 0:
            raise ValueError(f"axis must be 0 or more, got {self.axis}")

    @property
    def grid(self) -> WeightGrid:
        """Symmetric or not, as the word that users give."""
        return "symmetric" if self.symmetric else "asymmetric"

    @property
    def quant_min(self) -> int:
        """The smallest code: 0, or ``-2^(bits - 1)`` where the codes are signed."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def quant_max(self) -> int:
        """The largest code: ``2^bits - 1``, or ``2^(bits - 1) - 1`` where the codes are signed."""
        return self.quant_min + (1 << self.bits) - 1

    def __str__(self) -> str:
        """A short text: ``uint4 per channel, axis 0, asymmetric``."""
        codes = f"{'int' if self.signed else 'uint'}{self.bits} {self.granularity}"
        axis = "" if self.axis is None else f", axis {self.axis}"
        return f"{codes}{axis}, {self.grid}"


def weight_format(bits: int, grid: WeightGrid = "asymmetric", axis: int | None = 0) -> NumberFormat:
    """The format of stored values: unsigned codes with a zero point, or signed ones without.

    Args:
        bits: bits of a code.
        grid: symmetric or not.
        axis: that of the channels, a weight's output channels; None: one scale for all.
    """
    is_symmetric = grid == "symmetric"
    granularity: Granularity = "per tensor" if axis is None else "per channel"
    return NumberFormat(bits, signed=is_symmetric, symmetric=is_symmetric, granularity=granularity, axis=axis)


def activation_format(bits: int, signed: bool) -> NumberFormat:
    """The format of activations: no zero point, per tensor; signed where the values go below zero."""
    return NumberFormat(bits, signed, symmetric=True, granularity="per tensor")


SLOPE_FORMAT = weight_format(8, "symmetric", axis=None)
"""The format of the slopes of leaky rectifiers, whatever the bits of the weights.

A slope is the parameter of an activation function: it bends every value below zero. Integer runtimes keep 8 bits too.
"""
