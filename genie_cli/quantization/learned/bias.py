"""A bias that learns with the scales of a quantized network."""

from __future__ import annotations

from torch import Tensor, nn


class LearnedBias(nn.Module):
    """The place where a graph reads a bias ``[O]``: ``b = b_0 + unit * offset``, filled anew for each step.

    Attributes:
        start: b_0, ``[O]``.
        unit: how far an offset of 1 moves it: the root mean square of b_0; 0 where it is all zeros, which stays.
        value: the bias of this step.
    """

    start: Tensor
    unit: Tensor
    value: Tensor

    def __init__(self, start: Tensor) -> None:
        """Start from `start` ``[O]``."""
        super().__init__()
        self.register_buffer("start", start.detach().float().clone())
        self.register_buffer("unit", start.detach().float().square().mean().sqrt())
        self.register_buffer("value", self.start.clone())

    def forward(self) -> Tensor:
        """The bias of this step."""
        return self.value
