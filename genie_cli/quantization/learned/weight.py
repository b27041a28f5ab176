"""The base of all learned weights: elements on a grid whose step size learns too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genie_cli.student.formats import NumberFormat
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

    The step size is ``s = s_0 + offset_scale * offset``. An optimizer's absolute rate on `offset` means the
    same for every channel where `offset_scale` carries the channel's own scale; 0 keeps a step size as it is.

    Shapes: weight and elements ``[O, ...]``; step sizes, zero point, offset and its scale ``[O, 1, ...]``.

    Attributes:
        format: of the codes; per channel, axis 0.
        has_softbits: the elements are logits, of which `parts` is given the softbits.
        elements: what learns element by element.
    """

    has_softbits: bool
    zero_point: Tensor
    start: Tensor
    offset_scale: Tensor
    offset: Tensor
    elements: Tensor

    def __init__(
        self, elements: Tensor, scale: Tensor, zero_point: Tensor, format: NumberFormat, offset_scale: Tensor
    ) -> None:
        """Start from the grid of `scale` and `zero_point`, ``[O, 1]`` as `offset_scale`."""
        super().__init__()
        self.format = format
        self.register_buffer("elements", elements)
        self.register_buffer("zero_point", like_rows(zero_point, elements).clone())
        self.register_buffer("start", like_rows(scale, elements).clone())
        self.register_buffer("offset_scale", like_rows(offset_scale, elements).clone())
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
        step_size = self.start + self.offset_scale * self.offset
        codes = self.codes(step_size).clamp(self.format.quant_min, self.format.quant_max)
        return IntegerWeight(codes, step_size.flatten(1), self.zero_point.flatten(1), self.format)
