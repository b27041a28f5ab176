"""The calibration activations between two units: every tensor that a later unit needs, of both kinds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, fx

from genie_cli.quantization.activations.store import ActivationStore


class Carried:
    """The teacher's tensors at one place of the network, and the same behind the already quantized units.

    A tensor that passes a unit by stays where it is; the stores of one that no later unit needs are released.

    Attributes:
        held_out: rows that are never trained on.
    """

    def __init__(self, images: fx.Node, store: ActivationStore, held_out: Tensor) -> None:
        """In front of the first unit there are the images alone, which are the same for both."""
        self._full: dict[fx.Node, ActivationStore] = {images: store}
        self._quantized: dict[fx.Node, ActivationStore] = {images: store}
        self.held_out = held_out

    def full(self, nodes: Iterable[fx.Node]) -> tuple[ActivationStore, ...]:
        """The teacher's values of `nodes`, each ``[n, ...]``."""
        return tuple(self._full[node] for node in nodes)

    def quantized(self, nodes: Iterable[fx.Node]) -> tuple[ActivationStore, ...]:
        """The values of `nodes` behind the already quantized units, each ``[n, ...]``."""
        return tuple(self._quantized[node] for node in nodes)

    def add_full(self, nodes: Sequence[fx.Node], stores: Sequence[ActivationStore], passing: Sequence[fx.Node]) -> None:
        """Take the teacher's values of `nodes`, and release those of all others but `passing`."""
        for node in [node for node in self._full if node not in passing]:
            store = self._full.pop(node)
            if store is not self._quantized[node]:
                store.release()
        self._full.update(zip(nodes, stores, strict=True))

    def add_quantized(
        self, nodes: Sequence[fx.Node], stores: Sequence[ActivationStore], passing: Sequence[fx.Node]
    ) -> None:
        """The same for the quantized network's values."""
        for node in [node for node in self._quantized if node not in passing]:
            self._quantized.pop(node).release()
        self._quantized.update(zip(nodes, stores, strict=True))
