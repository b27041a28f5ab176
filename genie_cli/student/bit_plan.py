"""Who gets which bits in one network: bits of the weights, and the tensors that are quantized."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from genie_cli.student.formats import NumberFormat, weight_format

Bits = int | None
"""Bits of an activation; None: it stays in float, which ranks above any number of bits."""


@dataclass(frozen=True)
class ActivationSite:
    """A tensor that is quantized.

    Attributes:
        name: after its first reader in data-flow order: ``layer1.0.conv1.input``; the network's output,
            which has none, after its producer: ``fc.output``.
        node: name of the node whose value it is.
        bits: bits of its codes.
    """

    name: str
    node: str
    bits: int


@dataclass(frozen=True)
class BitPlan:
    """Who gets which bits in one network.

    Attributes:
        weights: layer name -> bits.
        activations: the sites in order.
        symmetric_weights: the layers whose weights have a symmetric grid.
    """

    weights: dict[str, int]
    activations: tuple[ActivationSite, ...]
    symmetric_weights: frozenset[str] = frozenset()

    def weight_format(self, layer: str) -> NumberFormat:
        """The number format of a layer's weight."""
        return weight_format(self.weights[layer], "symmetric" if layer in self.symmetric_weights else "asymmetric")

    def part(self, layers: Iterable[str], sites: Sequence[ActivationSite]) -> BitPlan:
        """The plan of some of the layers and sites."""
        weights = {name: self.weights[name] for name in layers}
        return BitPlan(weights, tuple(sites), self.symmetric_weights & weights.keys())
