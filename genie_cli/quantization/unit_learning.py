"""Learn one unit: as a whole, or its layers one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from genie_cli.artifacts.work_folder import NO_WORK, RETRIED, Work
from genie_cli.config import QuantizeConfig
from genie_cli.errors import NumbersError
from genie_cli.models.graph.folding import FoldedGraph
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.pooling import repeat_max_pool_gradients
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.quantization.activation_store import ActivationPool, ActivationStore
from genie_cli.quantization.learned_weight import LearnedWeight
from genie_cli.quantization.lsq import LearnedActivationQuantizer
from genie_cli.quantization.pieces import Piece, layer_by_layer
from genie_cli.quantization.reconstruction import learn_unit
from genie_cli.quantization.rounding import SoftRoundedWeight, largest_rate
from genie_cli.quantization.straight_through_weight import StraightThroughWeight
from genie_cli.quantization.unit_state import pack_unit, unpack_unit
from genie_cli.quantization.unit_task import SoftWeightSlot, UnitTask
from genie_cli.runtime.distribution import SOLO, Workers
from genie_cli.runtime.progress import Note, Reporter, silent
from genie_cli.runtime.shortage import Pieces
from genie_cli.student.build import insert_quantizers
from genie_cli.student.grid import minmax_weight_grid, quantize_weight, search_weight_grid
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight


@dataclass(frozen=True)
class UnitData:
    """The tensors that a unit learns from, image by image.

    Attributes:
        full_inputs: the teacher's input of the unit, ``[n, ...]``.
        quantized_inputs: the same from the already quantized units before.
        targets: the teacher's output of the unit.
        held_out: rows that are never trained on.
        pool: where more of them are kept.
        in_pieces: how many pass at once.
    """

    full_inputs: ActivationStore
    quantized_inputs: ActivationStore
    targets: ActivationStore
    held_out: Tensor
    pool: ActivationPool
    in_pieces: Pieces


@dataclass(frozen=True)
class LearnedUnit:
    """A learned unit: layer name -> weight, site name -> quantizer, steps taken in all."""

    weights: dict[str, IntegerWeight]
    activations: dict[str, ActivationQuantizer]
    num_steps: int


def num_stages(piece_layers: int, config: QuantizeConfig) -> int:
    """The number of times that a unit of so many layers takes its steps."""
    return piece_layers if config.reconstruct and config.unit == "layer" else 1


def learn(
    piece: Piece,
    folded: FoldedGraph,
    initial: Mapping[str, ActivationQuantizer],
    data: UnitData,
    config: QuantizeConfig,
    device: torch.device,
    dtype: torch.dtype,
    on_step: Callable[[int, float], None],
    workers: Workers = SOLO,
    work: Work = NO_WORK,
    place: str = "unit",
    report: Reporter = silent,
) -> LearnedUnit:
    """Learn the weights and step sizes of a unit, in the granularity of `config.unit`.

    Args:
        piece: the unit.
        folded: the network it is a part of.
        initial: where its step sizes start.
        data: what it learns from.
        config: the recipe.
        device: where to compute.
        dtype: arithmetic of the convolutions.
        on_step: called with (steps done in this unit, loss) every so many steps.
        workers: processes that learn together.
        work: where what is finished is kept, and found again.
        place: what this unit is called there.
        report: receives a note where a unit is tried again.

    Raises:
        NumbersError: the loss is not finite, in float32 too.
    """

    def learned(part: Piece, own: UnitData, place: str, on_step: Callable[[int, float], None]) -> LearnedUnit:
        found = finished_part(work, place, device, workers)
        if found is not None:
            return found

        def attempt(dtype: torch.dtype, place: str) -> tuple[UnitTask, int]:
            task = _make_task(part, folded, initial, own, config, device, weights, activations)
            return task, learn_unit(task, config, device, dtype, on_step, workers, work, place, report)

        try:
            task, taken = attempt(dtype, place)
        except NumbersError as error:
            if dtype == torch.float32:
                raise
            report(Note(f"{error} It is tried again in float32.", warning=True))
            # From its start, and kept apart: a checkpoint comes by the clock, and may hold the cause already.
            task, taken = attempt(torch.float32, f"{place}{RETRIED}")
        result = LearnedUnit(*_hardened(task), taken)
        if workers.is_first:
            saved = pack_unit(result.weights, result.activations, taken)
            work.finish(place, saved.tensors, saved.facts)
        return result

    weights: dict[str, IntegerWeight] = {}
    activations: dict[str, ActivationQuantizer] = {}
    if config.unit != "layer":
        return learned(piece, data, place, on_step)
    taken = 0
    for stage, part in enumerate(layer_by_layer(folded.graph, piece)):
        is_end = part.output is piece.output
        targets = data.targets
        if not is_end:
            targets = forward(part.teacher, data.full_inputs, data.pool, part.rows, data.in_pieces, data.targets.dtype)
        own = replace(data, targets=targets)

        def on_stage_step(step: int, loss: float, before: int = stage * config.num_steps) -> None:
            on_step(before + step, loss)

        result = learned(part, own, f"{place}.{stage}", on_stage_step)
        weights.update(result.weights)
        activations.update(result.activations)
        taken += result.num_steps
        if not is_end:
            targets.release()
    return LearnedUnit(weights, {**initial, **activations}, taken)


def finished_part(work: Work, place: str, device: torch.device, workers: Workers) -> LearnedUnit | None:
    """A unit that an earlier run has finished, if every process finds it."""
    saved = work.part(place)
    found = int(workers.sum_(torch.tensor(float(saved is not None))))
    return LearnedUnit(*unpack_unit(saved, device)) if saved is not None and found == workers.size else None


def round_to_nearest(piece: Piece, config: QuantizeConfig) -> dict[str, IntegerWeight]:
    """The unit's weights on their initial grids, nothing learned."""
    return {
        name: IntegerWeight(quantize_weight(weight, scale, zero_point, bits), scale, zero_point, bits)
        for name, (weight, scale, zero_point, bits) in _initial_grids(piece, config).items()
    }


@torch.no_grad()
def forward(
    graph: fx.GraphModule,
    inputs: ActivationStore,
    pool: ActivationPool,
    rows: int,
    in_pieces: Pieces,
    dtype: torch.dtype = torch.float32,
) -> ActivationStore:
    """The graph's output for all inputs, in float32, kept in `dtype`; `rows` at once, fewer where memory runs out."""
    outputs: ActivationStore | None = None
    for first in range(0, len(inputs), rows):
        batch = in_pieces(graph, inputs.read(first, min(first + rows, len(inputs))).float())
        if outputs is None:
            outputs = pool.allocate((len(inputs), *batch.shape[1:]), dtype)
        outputs.write(first, batch)
    assert outputs is not None
    return outputs


def _hardened(task: UnitTask) -> tuple[dict[str, IntegerWeight], dict[str, ActivationQuantizer]]:
    weights = {name: weight.harden() for name, weight in task.weights.items()}
    return weights, {name: activation.harden() for name, activation in task.activations.items()}


def _initial_grids(piece: Piece, config: QuantizeConfig) -> dict[str, tuple[Tensor, Tensor, Tensor, int]]:
    """Layer name -> weight, scale, zero point, bits."""
    search = search_weight_grid if config.weight_range == "search" else minmax_weight_grid
    grids = {}
    for layer in weight_layers(piece.teacher):
        weight, bits = get_tensor(piece.teacher, layer.weight_key), piece.plan.weights[layer.name]
        grids[layer.name] = (weight, *search(weight, bits), bits)
    return grids


def _make_task(
    piece: Piece,
    folded: FoldedGraph,
    initial: Mapping[str, ActivationQuantizer],
    data: UnitData,
    config: QuantizeConfig,
    device: torch.device,
    finished_weights: Mapping[str, IntegerWeight],
    finished_activations: Mapping[str, ActivationQuantizer],
) -> UnitTask:
    make_weight = StraightThroughWeight if config.rounding in ("adaquant", "nearest") else SoftRoundedWeight
    weights: dict[str, LearnedWeight] = {}
    for name, (weight, scale, zero_point, bits) in _initial_grids(piece, config).items():
        if name in finished_weights:
            continue
        unit = scale
        if config.weight_step_space == "checkpoint":
            # The step of the checkpoint's weight moves by lr; folded, that is |gamma / sigma| as much.
            unit = folded.multipliers.get(name, torch.ones(len(scale))).abs().view(-1, 1).to(scale.device)
        if config.weight_step_lr:
            unit = torch.minimum(unit, largest_rate(scale, 2**bits - 1) / config.weight_step_lr)
        weights[name] = make_weight(weight, scale, zero_point, bits, unit).to(device)
    slots = {name: SoftWeightSlot() for name in weights}
    activations = {
        site.name: LearnedActivationQuantizer(
            float(initial[site.name].step_size), site.bits, initial[site.name].signed, config.drop_prob
        ).to(device)
        for site in piece.plan.activations
        if site.name not in finished_activations
    }
    all_weights: dict[str, nn.Module] = {**slots, **{n: w.to(device) for n, w in finished_weights.items()}}
    all_activations: dict[str, nn.Module] = {**finished_activations, **activations}
    student = repeat_max_pool_gradients(insert_quantizers(piece.teacher, piece.plan, all_weights, all_activations))
    return UnitTask(
        piece.name, student.to(device), slots, weights, activations, data.full_inputs, data.quantized_inputs,
        data.targets, data.held_out,
    )  # fmt: skip
