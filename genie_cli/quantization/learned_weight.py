"""The base of all learned weights: elements on a grid whose step size learns too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genie_cli.student.grid import like_rows
from genie_cli.student.modules import IntegerWeight


class WeightParts(NamedTuple):
    """A weight ``[O, ...]`` and what it depends on, element by element.

    Attributes:
        weight: its values.
        slope: their derivative in what learns element by element.
        step_slope: their derivative in the channel's step size.
    """

    weight: Tensor
    slope: Tensor
    step_slope: Tensor


class LearnedWeight(nn.Module, ABC):
    """A weight whose elements and step size can learn: softbits, or the weight behind nearest rounding.

    The step size is ``s = s_0 + unit * offset``: an optimizer's absolute rate on `offset` means the
    same for every channel when `unit` carries the channel's own scale; 0 keeps a step size as it is.

    Shapes: weight and elements ``[O, ...]``; step sizes, zero point, unit and offset ``[O, 1, ...]``.

    Attributes:
        bits: of the grid.
        has_softbits: the elements are logits, of which `parts` is given the softbits.
        elements: what learns element by element.
    """

    has_softbits: bool
    zero_point: Tensor
    start: Tensor
    unit: Tensor
    offset: Tensor
    elements: Tensor

    def __init__(self, elements: Tensor, scale: Tensor, zero_point: Tensor, bits: int, unit: Tensor) -> None:
        """Start from the grid of `scale` and `zero_point`, ``[O, 1]`` as `unit`."""
        super().__init__()
        self.bits = bits
        self.register_buffer("elements", elements)
        self.register_buffer("zero_point", like_rows(zero_point, elements).clone())
        self.register_buffer("start", like_rows(scale, elements).clone())
        self.register_buffer("unit", like_rows(unit, elements).clone())
        self.register_buffer("offset", torch.zeros_like(self.start))

    @abstractmethod
    def parts(self, values: Tensor, step_size: Tensor) -> WeightParts:
        """The weight of softbits or elements, and of a step size ``[O, 1, ...]``."""

    @abstractmethod
    def codes(self, step_size: Tensor) -> Tensor:
        """The finished integers of `elements`, not yet clipped to the grid."""

    @torch.no_grad()
    def harden(self) -> IntegerWeight:
        """The integer weight of `elements` and `offset`."""
        step_size = self.start + self.unit * self.offset
        codes = self.codes(step_size).clamp(0, 2**self.bits - 1)
        return IntegerWeight(codes, step_size.flatten(1), self.zero_point.flatten(1), self.bits)
