"""GENIE-M over a whole network: unit by unit, front to back, activations carried on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from genie_cli.config import QuantizeConfig
from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.folding import FoldedGraph, fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.placement import move
from genie_cli.models.graph.subgraph import extract
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.calibration import calibrate_sites
from genie_cli.quantization.lsq import LearnedActivationQuantizer
from genie_cli.quantization.reconstruction import SoftWeightSlot, UnitTask, learn_unit
from genie_cli.quantization.rounding import SoftRoundedWeight, largest_rate
from genie_cli.quantization.units import Unit, reconstruction_units
from genie_cli.runtime.progress import Advanced, Reporter, StageFinished, StageStarted, silent
from genie_cli.student.build import insert_quantizers
from genie_cli.student.grid import minmax_weight_grid, quantize_weight, search_weight_grid
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight
from genie_cli.student.protocol import ActivationSite, BitPlan, assign_bits, find_protocol

STAGE = "quantize"
_FORWARD_BATCH = 64


@dataclass(frozen=True)
class UnitReport:
    """How one unit came out.

    Attributes:
        name: the unit's name.
        layers: its weight layers.
        relative_error: squared error at its output against the teacher's, over the teacher's own
            squared norm, with the finished integers, over all calibration images.
    """

    name: str
    layers: tuple[str, ...]
    relative_error: float


@dataclass(frozen=True)
class QuantizedNetwork:
    """A learned network, not yet written.

    Attributes:
        folded: the teacher with its batch norms folded.
        plan: who got which bits.
        weights: layer name -> integer weight.
        activations: site name -> quantizer.
        units: how each unit came out, front to back.
    """

    folded: FoldedGraph
    plan: BitPlan
    weights: dict[str, IntegerWeight]
    activations: dict[str, ActivationQuantizer]
    units: tuple[UnitReport, ...]


@dataclass(frozen=True)
class _Piece:
    """One unit's share of the folded graph."""

    unit: Unit
    nodes: list[fx.Node]
    source: fx.Node
    teacher: fx.GraphModule
    plan: BitPlan


def quantize_network(
    teacher: Teacher,
    images: Tensor,
    config: QuantizeConfig,
    device: torch.device,
    dtype: torch.dtype,
    report: Reporter = silent,
) -> QuantizedNetwork:
    """Quantize `teacher` on calibration images.

    Args:
        teacher: the pre-trained network.
        images: calibration images ``[n, C, H, W]``, normalised for the teacher.
        config: bits, protocol, recipe, budget, seed.
        device: where to compute.
        dtype: arithmetic of the convolutions while a unit learns.
        report: receives progress.

    Raises:
        UsageError: unknown protocol.
    """
    folded = fold_batch_norms(teacher.graph)
    plan = assign_bits(folded.graph, find_protocol(config.protocol), config.weight_bits, config.activation_bits)
    units = reconstruction_units(folded.graph)
    move(folded.graph, device)
    steps = config.num_steps if config.reconstruct else 1
    report(StageStarted(STAGE, steps * len(units)))
    full = quantized = images.contiguous(memory_format=torch.channels_last)
    weights: dict[str, IntegerWeight] = {}
    activations: dict[str, ActivationQuantizer] = {}
    reports = []
    for position, unit in enumerate(units):
        piece = _cut_out(folded.graph, unit, plan)
        targets = _forward(piece.teacher, full, device)
        initial = calibrate_sites(
            folded.graph, piece.nodes, piece.source, piece.plan.activations, quantized, config, device
        )
        where = f"unit {position + 1}/{len(units)} {unit.name}"
        if config.reconstruct:
            done = position * steps

            def on_step(step: int, loss: float, done: int = done, where: str = where) -> None:
                report(Advanced(STAGE, done + step, where, {"loss": loss}))

            task = _make_task(piece, folded, initial, full, quantized, targets, config, device)
            learn_unit(task, config, device, dtype, on_step)
            unit_weights = {name: weight.harden() for name, weight in task.weights.items()}
            unit_activations = {name: activation.harden() for name, activation in task.activations.items()}
        else:
            unit_weights = _round_to_nearest(piece, config)
            unit_activations = initial
        student = insert_quantizers(piece.teacher, piece.plan, unit_weights, unit_activations).to(device)
        quantized = _forward(student, quantized, device)
        reports.append(UnitReport(unit.name, unit.layers, _relative_error(quantized, targets)))
        report(Advanced(STAGE, (position + 1) * steps, where, {"error": reports[-1].relative_error}))
        full = targets
        weights.update((name, weight.cpu()) for name, weight in unit_weights.items())
        activations.update((name, activation.cpu()) for name, activation in unit_activations.items())
    move(folded.graph, torch.device("cpu"))
    report(StageFinished(STAGE))
    return QuantizedNetwork(folded, plan, weights, activations, tuple(reports))


def _cut_out(folded: fx.GraphModule, unit: Unit, plan: BitPlan) -> _Piece:
    all_nodes = data_nodes(folded)
    names = [node.name for node in all_nodes]
    first, last = names.index(unit.source), names.index(unit.output)
    nodes = all_nodes[first + 1 : last + 1]
    read = set(names[first:last])
    sites: tuple[ActivationSite, ...] = tuple(site for site in plan.activations if site.node in read)
    own_plan = BitPlan({name: plan.weights[name] for name in unit.layers}, sites)
    teacher = extract(folded, nodes, all_nodes[first], [all_nodes[last]])
    return _Piece(unit, nodes, all_nodes[first], teacher, own_plan)


def _initial_grids(piece: _Piece, config: QuantizeConfig) -> dict[str, tuple[Tensor, Tensor, Tensor, int]]:
    """Layer name -> weight, scale, zero point, bits."""
    search = search_weight_grid if config.weight_range == "search" else minmax_weight_grid
    grids = {}
    for layer in weight_layers(piece.teacher):
        weight, bits = get_tensor(piece.teacher, layer.weight_key), piece.plan.weights[layer.name]
        grids[layer.name] = (weight, *search(weight, bits), bits)
    return grids


def _round_to_nearest(piece: _Piece, config: QuantizeConfig) -> dict[str, IntegerWeight]:
    return {
        name: IntegerWeight(quantize_weight(weight, scale, zero_point, bits), scale, zero_point, bits)
        for name, (weight, scale, zero_point, bits) in _initial_grids(piece, config).items()
    }


def _make_task(
    piece: _Piece,
    folded: FoldedGraph,
    initial: dict[str, ActivationQuantizer],
    full: Tensor,
    quantized: Tensor,
    targets: Tensor,
    config: QuantizeConfig,
    device: torch.device,
) -> UnitTask:
    weights = {}
    for name, (weight, scale, zero_point, bits) in _initial_grids(piece, config).items():
        unit = scale
        if config.weight_step_space == "checkpoint":
            # The step of the checkpoint's weight moves by lr; folded, that is |gamma / sigma| as much.
            unit = folded.multipliers.get(name, torch.ones(len(scale))).abs().view(-1, 1).to(scale.device)
        if config.weight_step_lr:
            unit = torch.minimum(unit, largest_rate(scale, 2**bits - 1) / config.weight_step_lr)
        weights[name] = SoftRoundedWeight(weight, scale, zero_point, bits, unit).to(device)
    slots = {name: SoftWeightSlot() for name in weights}
    activations = {
        name: LearnedActivationQuantizer(float(start.step_size), start.bits, start.signed, config.drop_prob).to(device)
        for name, start in initial.items()
    }
    modules: dict[str, nn.Module] = dict(activations)
    student = insert_quantizers(piece.teacher, piece.plan, slots, modules)
    return UnitTask(piece.unit.name, student, slots, weights, activations, full, quantized, targets)


@torch.no_grad()
def _forward(graph: fx.GraphModule, inputs: Tensor, device: torch.device) -> Tensor:
    """The graph's output for all inputs, kept where the inputs are."""
    outputs: Tensor | None = None
    for first in range(0, len(inputs), _FORWARD_BATCH):
        batch = graph(inputs[first : first + _FORWARD_BATCH].to(device)).to(inputs.device)
        if outputs is None:  # filled in place: a list to join at the end would need the memory twice
            shape = (len(inputs), *batch.shape[1:])
            layout = torch.channels_last if batch.dim() == 4 else torch.contiguous_format
            outputs = torch.empty(shape, dtype=batch.dtype, device=inputs.device, memory_format=layout)
        outputs[first : first + _FORWARD_BATCH] = batch
    assert outputs is not None
    return outputs


def _relative_error(values: Tensor, targets: Tensor) -> float:
    error = norm = 0.0
    for value, target in zip(values.split(_FORWARD_BATCH), targets.split(_FORWARD_BATCH), strict=True):
        error += float((value - target).double().square().sum())
        norm += float(target.double().square().sum())
    return error / norm if norm else 0.0
