"""The memory that calibration activations may take, beside the working set of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from genie_cli.config import QuantizeConfig
from genie_cli.errors import UsageError
from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.quantization.units import Unit
from genie_cli.runtime.distribution import processes_here
from genie_cli.runtime.memory import format_size, free_memory

_FREE_SHARE = 0.7
"""Of the free memory, where no limit is given: other processes want some too."""
_COPIES_A_TENSOR = 3
"""Values kept for each element of a unit's tensors in a step, roughly: itself, its gradient, what quantizers keep."""
_COPIES_A_WEIGHT = 10
"""The same for a weight: logits, their gradient and Adam's moments, softbits, the grid and their slopes."""


_TENSOR_BYTES_CPU, _TENSOR_BYTES_GPU = 16 << 20, 512 << 20
_MOST_ROWS = 64


@dataclass(frozen=True)
class ActivationBudget:
    """Bytes for stored activations: on the device (0 on a CPU, where it is the host) and in host memory."""

    device: int
    host: int


def activation_budget(
    folded: fx.GraphModule, units: Sequence[Unit], config: QuantizeConfig, device: torch.device
) -> ActivationBudget:
    """The memory limit, by default a share of what is free, less the working set of the largest step.

    Args:
        folded: the folded graph, with the shapes that its capture recorded.
        units: what is learned one by one.
        config: `memory_limit` and `batch_size`.
        device: where steps run.

    Raises:
        UsageError: the limit is below the working set.
    """
    needed = max(_working_set(folded, unit, config.batch_size) for unit in units)
    if config.memory_limit is not None and config.memory_limit < needed:
        raise UsageError(
            f"--memory-limit {format_size(config.memory_limit)} is below the {format_size(needed)} that a step of "
            f"{config.batch_size} images needs: raise it, or lower --batch-size."
        )

    def room(place: torch.device, working_set: int) -> int:
        if config.memory_limit is not None:
            return max(0, config.memory_limit - working_set)
        sharing = processes_here() if place.type == "cpu" else 1  # each has a GPU of its own
        return max(0, int(_FREE_SHARE * free_memory(place)) // sharing - working_set)

    if device.type == "cpu":
        return ActivationBudget(0, room(device, needed))
    return ActivationBudget(room(device, needed), room(torch.device("cpu"), 0))


def rows_at_once(nodes: Sequence[fx.Node], device: torch.device) -> int:
    """Images that pass through `nodes` together where nothing is learned: few, if their tensors are large.

    The result does not depend on it; tensors of bounded size keep the peak of memory low, and a CPU's cache warm.
    """
    largest = max(1, *(numel_an_image(node) for node in nodes)) * torch.float32.itemsize
    bound = _TENSOR_BYTES_CPU if device.type == "cpu" else _TENSOR_BYTES_GPU
    return max(1, min(_MOST_ROWS, bound // largest))


def _working_set(folded: fx.GraphModule, unit: Unit, batch_size: int) -> int:
    nodes = data_nodes(folded)
    names = [node.name for node in nodes]
    inside = nodes[names.index(unit.source) : names.index(unit.output) + 1]
    values = sum(numel_an_image(node) for node in inside) * batch_size
    layers = {layer.name: layer for layer in weight_layers(folded)}
    weights = sum(get_tensor(folded, layers[name].weight_key).numel() for name in unit.layers)
    return torch.float32.itemsize * (_COPIES_A_TENSOR * values + _COPIES_A_WEIGHT * weights)


def numel_an_image(node: fx.Node) -> int:
    """Elements of the node's value for one image; 0 where it is no tensor with a batch."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dim() < 2:
        return 0
    count = 1
    for side in value.shape[1:]:
        count *= int(side)
    return count
