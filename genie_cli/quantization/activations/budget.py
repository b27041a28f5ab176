"""The memory that calibration activations may take, beside the working set of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from genie_cli.config import QuantizeConfig
from genie_cli.errors import UsageError
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor, numel_per_image
from genie_cli.quantization.units.partition import Unit
from genie_cli.runtime.distribution import processes_here
from genie_cli.runtime.memory import format_size, free_memory

_FREE_SHARE = 0.7
"""Of the free memory, where no limit is given: other processes want some too."""
_COPIES_PER_TENSOR = 3
"""Values kept for each element of a unit's tensors in a step, roughly: itself, its gradient, what quantizers keep."""
_COPIES_PER_WEIGHT = 10
"""The same for a weight: logits, their gradient and Adam's moments, softbits, the grid and their slopes."""


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


def _working_set(folded: fx.GraphModule, unit: Unit, batch_size: int) -> int:
    values = sum(numel_per_image(node) for node in (*unit.sources, *unit.nodes)) * batch_size
    layers = {layer.name: layer for layer in weight_layers(folded)}
    weights = sum(get_tensor(folded, layers[name].weight_key).numel() for name in unit.layers)
    return torch.float32.itemsize * (_COPIES_PER_TENSOR * values + _COPIES_PER_WEIGHT * weights)
