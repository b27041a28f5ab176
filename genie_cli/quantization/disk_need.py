"""An upper bound of the disk that a quantization takes at once."""

from __future__ import annotations

import torch

from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor, named_tensors, numel_per_image
from genie_cli.quantization.plan import QuantizationPlan
from genie_cli.quantization.units.partition import Unit
from genie_cli.runtime.determinism import MASK_POOL
from genie_cli.runtime.distribution import processes_here
from genie_cli.work.room import KEPT_CHECKPOINTS, SMALL_FILE, DiskNeed

_FLOAT, _INDEX = torch.float32.itemsize, torch.int64.itemsize
_VALUES = 4
"""Float32 values in a checkpoint for each element that learns: itself, Adam's two moments, the best so far."""
_SAID = 1 << 10
"""Bytes allowed in a file for what it says of one layer or site: names, shapes, bits, in each of its headers."""


def quantization_need(plan: QuantizationPlan, num_images: int, dtype: torch.dtype, num_processes: int) -> DiskNeed:
    """Finished units, which stay until the output stands, and the output or the checkpoints of the unit at work.

    Args:
        plan: what will be done.
        num_images: this process's share of the images.
        dtype: of the activations that are kept.
        num_processes: processes that learn together, each of which keeps checkpoints.
    """
    config, graph = plan.config, plan.folded.graph
    layers = weight_layers(graph)
    sizes = {layer.name: get_tensor(graph, layer.weight_key).shape for layer in layers}
    channels = sum(2 * _FLOAT * shape[0] for shape in sizes.values())  # scale and zero point
    said = SMALL_FILE + _SAID * (len(layers) + len(plan.bits.activations))
    codes = sum(shape.numel() for shape in sizes.values())  # a byte each
    weights = {layer.weight_key for layer in layers}
    others = sum(value.numel() * _INDEX for key, value in named_tensors(graph).items() if key not in weights)
    output = codes + channels + others + 3 * said
    if plan.budget is None:
        return DiskNeed(output)
    temporary = _activations_on_disk(plan, num_images, dtype) * processes_here()
    if not config.reconstruct and plan.finetuned is None:
        return DiskNeed(output, temporary)
    learned = max(
        sum(sizes[name].numel() + 2 * sizes[name][0] for name in unit.layers) for unit in plan.learned_together
    )
    rows = (num_images + config.batch_size) * _INDEX
    checkpoint = _VALUES * _FLOAT * (learned + len(plan.bits.activations)) + MASK_POOL + rows + SMALL_FILE
    kept = (1 + (plan.finetuned is not None)) * (codes + channels + said) + others * (plan.finetuned is not None)
    return DiskNeed(kept + max(output, KEPT_CHECKPOINTS * checkpoint * num_processes), temporary)


def _activations_on_disk(plan: QuantizationPlan, num_images: int, dtype: torch.dtype) -> int:
    """Stores go to the first budget that has room for the whole of one, and so leave less than one store of it free."""
    assert plan.budget is not None
    largest = total = 0
    for unit in plan.learned_together:
        stores = [num_images * size for size in _row_sizes(unit, plan, dtype)]
        largest, total = max(largest, *stores), max(total, sum(stores))
    if total <= plan.budget.host:
        return 0
    used = sum(max(0, budget - largest) for budget in (plan.budget.device, plan.budget.host))
    return max(0, total - used)


def _row_sizes(unit: Unit, plan: QuantizationPlan, dtype: torch.dtype) -> list[int]:
    """Bytes per image of what is stored at once: inputs and outputs of both kinds, or an output inside the unit."""
    images = [node for node in unit.entering if node.op == "placeholder"]  # in float32, and the same for both kinds
    entering = [numel_per_image(node) for node in unit.entering if node not in images]
    leaving = [numel_per_image(node) for node in unit.outputs]
    by_layer = plan.config.reconstruct and plan.config.unit == "layer"
    inside = [max(map(numel_per_image, unit.nodes))] if by_layer else []
    stored = [*entering, *entering, *leaving, *max(leaving, inside, key=sum)]
    return [numel_per_image(node) * _FLOAT for node in images] + [numel * dtype.itemsize for numel in stored]
