"""The most disk space that a quantization takes at once."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import fx

from genie_cli.artifacts.disk import TENSOR_BYTES, DiskNeed
from genie_cli.artifacts.packing import packed_length
from genie_cli.config import QuantizeConfig
from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor, named_tensors
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.memory_budget import ActivationBudget, activation_budget, numel_an_image
from genie_cli.quantization.units import Unit, reconstruction_units
from genie_cli.runtime.determinism import MASK_CUTS, MASK_POOL
from genie_cli.runtime.distribution import processes_here
from genie_cli.student.protocol import BitPlan, assign_bits, find_protocol

_FLOAT = torch.float32.itemsize
_INDEX = torch.int64.itemsize
_CHANNEL_BYTES = _FLOAT + torch.int32.itemsize
"""Bytes per channel of an integer weight: scale and zero point."""
_STATES = 2
"""Random numbers' states in a checkpoint: of the dropping and of the batches."""
_OTHERS = 7
"""Tensors in a checkpoint beside what learns: loss, micro-batches, masks, batches and those states."""


def quantization_need(
    teacher: Teacher,
    config: QuantizeConfig,
    device: torch.device,
    dtype: torch.dtype,
    num_images: int,
    num_processes: int = 1,
) -> DiskNeed:
    """Bytes that `quantize_network` (or, without images, `quantize_without_images`) keeps, and those of its output.

    Finished units stay until the output stands, and each process replaces one of its two checkpoints, of
    which three exist while it does so.

    Args:
        teacher: the network.
        config: bits, protocol, recipe, memory limit.
        device: where steps run.
        dtype: of the activations that are kept.
        num_images: this process's share of the images.
        num_processes: processes that learn together.

    Raises:
        UsageError: as `quantize_network`.
    """
    folded = fold_batch_norms(teacher.graph).graph
    protocol = find_protocol(config.protocol)
    plan = assign_bits(folded, protocol, config.weight_bits, config.activation_bits, config.bits_override or {})
    output = output_bytes(folded, plan, config)
    if config.data_free:
        return DiskNeed(output)
    units = reconstruction_units(folded, whole=config.unit == "network")
    budget = activation_budget(folded, units, config, device)
    stored = activations_on_disk(folded, units, config, dtype, num_images, budget)
    temporary = stored * processes_here()
    if not config.reconstruct:
        return DiskNeed(output, temporary)
    checkpoint = max(checkpoint_bytes(folded, unit, plan, config, num_images) for unit in units)
    return DiskNeed(parts_bytes(folded, plan) + max(output, 3 * checkpoint * num_processes), temporary)


def output_bytes(folded: fx.GraphModule, plan: BitPlan, config: QuantizeConfig) -> int:
    """The quantized folder: packed codes and their grids, all other tensors, step sizes, and what it says of them."""
    layers = weight_layers(folded)
    total, num_tensors = 0, 0
    for layer in layers:
        shape = get_tensor(folded, layer.weight_key).shape
        total += packed_length(shape.numel(), plan.weights[layer.name])
        total += shape[0] * _CHANNEL_BYTES + len(shape) * _INDEX
        num_tensors += 4
    taken = {layer.weight_key for layer in layers}
    others = [value for key, value in named_tensors(folded).items() if key not in taken]
    total += sum(value.numel() * (_FLOAT if value.is_floating_point() else value.itemsize) for value in others)
    total += len(plan.activations) * _FLOAT
    num_tensors += len(others) + len(plan.activations)
    said = len(json.dumps(config.model_dump(mode="json"))) + TENSOR_BYTES * (len(layers) + len(plan.activations))
    return total + num_tensors * TENSOR_BYTES + 3 * said  # each file says it


def parts_bytes(folded: fx.GraphModule, plan: BitPlan) -> int:
    """Bytes of all finished units: one per code, the grids, the step sizes."""
    total = len(plan.activations) * (_FLOAT + TENSOR_BYTES)
    for layer in weight_layers(folded):
        shape = get_tensor(folded, layer.weight_key).shape
        total += shape.numel() + shape[0] * _CHANNEL_BYTES + 3 * TENSOR_BYTES
    return total


def checkpoint_bytes(folded: fx.GraphModule, unit: Unit, plan: BitPlan, config: QuantizeConfig, num_images: int) -> int:
    """The largest state inside a unit: what learns, Adam's moments of it, the best so far, random numbers."""
    shapes = {layer.name: get_tensor(folded, layer.weight_key).shape for layer in weight_layers(folded)}
    sizes = [shapes[name].numel() + shapes[name][0] for name in unit.layers]  # elements, and one offset per channel
    nodes = {node.name for node in _inside(folded, unit)}
    num_sites = sum(site.node in nodes for site in plan.activations)
    learned = (max(sizes) if config.unit == "layer" else sum(sizes)) + num_sites
    values = 3 + (config.patience is not None)
    num_tensors = (values + 1) * 2  # of elements and of offsets, with Adam's counts of steps
    masks = MASK_POOL + MASK_CUTS * _INDEX if config.drop_prob else 0
    rest = (num_images + config.batch_size) * _INDEX
    states = _STATES * len(torch.random.get_rng_state())
    return learned * values * _FLOAT + masks + rest + states + (num_tensors + _OTHERS) * TENSOR_BYTES


def activations_on_disk(
    folded: fx.GraphModule,
    units: Sequence[Unit],
    config: QuantizeConfig,
    dtype: torch.dtype,
    num_images: int,
    budget: ActivationBudget,
) -> int:
    """The most bytes of activations in files at once, when stores are made and released as `quantize_network` does."""
    nodes = {node.name: node for node in data_nodes(folded)}
    layers = {layer.name: layer.node for layer in weight_layers(folded)}
    places = _Places([budget.device, budget.host])

    def take(node: fx.Node, dtype: torch.dtype = dtype) -> _Store:
        return places.take(num_images * numel_an_image(node) * dtype.itemsize)

    full = quantized = take(nodes[units[0].source], torch.float32)  # the images
    for unit in units:
        targets = take(nodes[unit.output])
        if config.reconstruct and config.unit == "layer":
            for name in unit.layers[:-1]:
                places.give(take(layers[name]))
        if full is not quantized:
            places.give(full)
        outputs = take(nodes[unit.output])
        places.give(quantized)
        full, quantized = targets, outputs
    return places.most_on_disk


class _Store:
    """Bytes in a place: an index of the budgets, or one beyond them for the disk."""

    def __init__(self, place: int, num_bytes: int) -> None:
        self.place, self.num_bytes = place, num_bytes


class _Places:
    """Stores go to the first budget with room, else to the disk, as `ActivationPool` has it."""

    def __init__(self, budgets: Sequence[int]) -> None:
        self._free = list(budgets)
        self._on_disk = 0
        self.most_on_disk = 0

    def take(self, num_bytes: int) -> _Store:
        for place, free in enumerate(self._free):
            if num_bytes <= free:
                self._free[place] -= num_bytes
                return _Store(place, num_bytes)
        self._on_disk += num_bytes
        self.most_on_disk = max(self.most_on_disk, self._on_disk)
        return _Store(len(self._free), num_bytes)

    def give(self, store: _Store) -> None:
        if store.place < len(self._free):
            self._free[store.place] += store.num_bytes
        else:
            self._on_disk -= store.num_bytes


def _inside(folded: fx.GraphModule, unit: Unit) -> list[fx.Node]:
    nodes = data_nodes(folded)
    names = [node.name for node in nodes]
    return nodes[names.index(unit.source) : names.index(unit.output) + 1]
