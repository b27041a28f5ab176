"""Find the layer of a network where NaN or infinity first appears."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, fx, nn

from genie_cli.models.graph.operations import operation_of


@torch.no_grad()
def bad_layer(network: nn.Module, images: Tensor) -> str | None:
    """The weight layer at or behind which the first value of a teacher or student is NaN or infinite.

    None where all values are finite, where the images are not, or where the network is not a graph module.
    """
    if not isinstance(network, fx.GraphModule):
        return None
    watch = _Watch(network)
    watch.run(images)
    return watch.found


class _Watch(fx.Interpreter):
    """Runs a graph and checks each value."""

    found: str | None = None
    _layer: str | None = None
    _is_over = False

    def run_node(self, n: fx.Node) -> Any:
        """Return the node's value, and note the layer of the first value that is not finite."""
        value = super().run_node(n)
        if self._is_over:
            return value
        operation = operation_of(n)
        weight = n.args[operation.weight] if operation is not None else None
        if isinstance(weight, fx.Node):
            self._layer = _layer_name(str(weight.target))
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            self.found, self._is_over = self._layer, True
        return value


def _layer_name(weight: str) -> str:
    """The layer of a stored weight, or of the module that computes it (`build.insert_quantizers`)."""
    owner, _, leaf = weight.rpartition(".")
    if owner == "weight_quantizers":
        return re.sub("_(.)", lambda found: "." if found[1] == "d" else "_", leaf)
    return owner or weight
