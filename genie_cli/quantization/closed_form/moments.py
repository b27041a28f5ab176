"""Moments of what a layer reads: in the network in float, and behind quantized layers."""

from __future__ import annotations

import torch
from torch import Tensor

from genie_cli.runtime.distribution import Workers

_CONSTANT = 1e-9
"""Share of its mean square below which the variance of an input is what rounding leaves of none."""


class Moments:
    """Sums over positions of two forms of the same patches, f in float and q quantized: of both, ``q q^T``, ``q f^T``.

    They are kept in float64: rounding decides by small differences, and should not depend on how many images are taken
    in at once.

    Attributes:
        count: positions.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.count = 0
        self._sums: tuple[Tensor, ...] = ()

    def add(self, full: Tensor, quantized: Tensor) -> None:
        """Take in patches of the same positions, ``[N, G, K]`` both."""
        full, quantized = (patches.transpose(0, 1).double() for patches in (full, quantized))
        turned = quantized.transpose(1, 2)
        parts = (full.sum(1), quantized.sum(1), turned @ quantized, turned @ full)
        self._sums = tuple(a + b for a, b in zip(self._sums, parts, strict=True)) if self._sums else parts
        self.count += full.shape[1]

    def summed(self, workers: Workers) -> Moments:
        """The same over all processes, each of which has seen other images."""
        result = Moments()
        result._sums = tuple(workers.sum_(value) for value in self._sums)
        result.count = int(workers.sum_(torch.tensor(float(self.count), dtype=torch.float64)))
        return result

    def means(self) -> tuple[Tensor, Tensor]:
        """Of the full and of the quantized patches, ``[G, K]``."""
        return self._sums[0] / self.count, self._sums[1] / self.count

    def products(self, centred: bool) -> tuple[Tensor, Tensor]:
        """Means of ``q q^T`` and of ``q f^T``, ``[G, K, K]``; `centred`: of what differs from the means.

        A constant differs from its mean by nothing: what rounding leaves of the difference is 0 here.
        """
        second, cross = self._sums[2] / self.count, self._sums[3] / self.count
        if centred:
            full, quantized = self.means()
            powers = second.diagonal(dim1=1, dim2=2)
            second = second - quantized.unsqueeze(2) * quantized.unsqueeze(1)
            cross = cross - quantized.unsqueeze(2) * full.unsqueeze(1)
            varies = (second.diagonal(dim1=1, dim2=2) > _CONSTANT * powers).to(second.dtype)
            second = second * varies.unsqueeze(2) * varies.unsqueeze(1)
            cross = cross * varies.unsqueeze(2)
        return second, cross
