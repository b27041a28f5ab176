"""GENIE-M over a whole network: unit by unit, front to back, activations carried on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genie_cli.errors import NumbersError
from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.outputs import as_tuple
from genie_cli.models.graph.placement import move
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.quantization.activations.errors import relative_errors
from genie_cli.quantization.activations.passing import ImageRows, run_over_store, store_images
from genie_cli.quantization.activations.pool import ActivationPool
from genie_cli.quantization.activations.step_sizes import initial_step_sizes
from genie_cli.quantization.activations.store import ActivationStore
from genie_cli.quantization.plan import QuantizationPlan
from genie_cli.quantization.reconstruction.batches import held_out_rows
from genie_cli.quantization.reconstruction.learned_unit import LearnedUnit, finished_part, pack_unit
from genie_cli.quantization.reconstruction.reconstruct import reconstruct
from genie_cli.quantization.reconstruction.task import UnitData, make_task
from genie_cli.quantization.result import STAGE, QuantizedNetwork, UnitReport
from genie_cli.quantization.step_cost import step_cost_shares
from genie_cli.quantization.units.unit_graph import UnitGraph, cut_out, layer_by_layer, rows_at_once
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Advanced, Paced, Reporter, StageFinished, StageStarted
from genie_cli.runtime.retry import float32_retried
from genie_cli.runtime.settings import release_freed_memory, settled_objects
from genie_cli.student.build import insert_quantizers
from genie_cli.student.formats import weight_format
from genie_cli.student.grid import weight_grid
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight


def quantize_network(plan: QuantizationPlan, images: ImageRows, context: RunContext) -> QuantizedNetwork:
    """Quantize a network on calibration images.

    Args:
        plan: what to do, of which network.
        images: calibration images ``[n, C, H, W]``, normalised for the teacher; with several processes,
            this one's share of them.
        context: what to run on; its processes learn together, and all end with the same network. Its arithmetic is that
            of the networks while a unit learns, and of the activations that are kept for it.

    Raises:
        NumbersError: a value that is not finite, in float32 too.
    """
    assert plan.budget is not None, "the plan was made to be looked at"
    config, graph, budget = plan.config, plan.folded.graph, plan.budget
    move(graph, context.device)
    steps = config.num_steps if config.reconstruct else 1
    context.report(StageStarted(STAGE, steps * sum(plan.stages)))
    shares = step_cost_shares(plan)
    weights: dict[str, IntegerWeight] = {}
    activations: dict[str, ActivationQuantizer] = {}
    reports = []
    done = 0
    with settled_objects(), ActivationPool(context.device, budget.device, budget.host, context.report) as pool:
        carried = _first_inputs(images, plan, pool)
        for position, (unit, stages) in enumerate(zip(plan.units, plan.stages, strict=True)):
            where = f"unit {position + 1}/{len(plan.units)} {unit.name}"
            progress = _Progress(
                context.report,
                f"unit{position}",
                where,
                done,
                sum(shares[:position]),
                shares[position] / (steps * stages),
            )
            part = cut_out(graph, unit, plan.bits, context.device)
            learned, error, held_out_error, carried = _quantize_unit(plan, part, carried, pool, context, progress)
            done += steps * stages
            context.report(Advanced(STAGE, done, where, {"error": error}))
            reports.append(UnitReport(unit.name, unit.layers, learned.num_steps, error, held_out_error))
            release_freed_memory()
            weights.update((name, weight.cpu()) for name, weight in learned.weights.items())
            activations.update((name, activation.cpu()) for name, activation in learned.activations.items())
        output_errors = _output_errors(plan, images, [carried.quantized], context)
        memory = pool.peak
    move(graph, torch.device("cpu"))
    context.report(StageFinished(STAGE))
    return QuantizedNetwork(plan, weights, activations, tuple(reports), memory, output_errors)


@torch.no_grad()
def _output_errors(
    plan: QuantizationPlan, images: ImageRows, outputs: Sequence[ActivationStore], context: RunContext
) -> dict[str, float]:
    """Output -> squared error of the quantized network against the unfolded teacher, over the teacher's own norm.

    Args:
        plan: names the teacher and its outputs.
        images: the calibration images.
        outputs: those of the quantized network, in the order of the graph's.
        context: what to run on.
    """
    teacher = move(plan.teacher.graph, context.device)
    sums = torch.zeros(len(outputs), 2, dtype=torch.float64)
    rows = rows_at_once(data_nodes(teacher), context.device)
    for first in range(0, len(images), rows):
        last = min(first + rows, len(images))
        answers = as_tuple(context.splitter(teacher, images[first:last].to(context.device)))
        for place, (store, answer) in enumerate(zip(outputs, answers, strict=True)):
            found, wanted = store.read(first, last).double(), answer.double()
            sums[place] += torch.stack([(found - wanted).square().sum(), wanted.square().sum()]).cpu()
    move(teacher, torch.device("cpu"))
    errors = [error / norm if norm else 0.0 for error, norm in context.workers.sum_(sums).tolist()]
    return dict(zip(plan.teacher.outputs.names, errors, strict=True))


@dataclass(frozen=True)
class _Carried:
    """The calibration activations in front of a unit.

    Attributes:
        full: those of the teacher, ``[n, ...]``.
        quantized: those behind the already quantized units; in front of the first unit the same store.
        held_out: rows that are never trained on.
    """

    full: ActivationStore
    quantized: ActivationStore
    held_out: Tensor


@dataclass(frozen=True)
class _Progress:
    """The place of the work: reports the steps of a unit among those of the network.

    Attributes:
        report: receives the events.
        part: the unit's name in the work folder.
        where: the place of the work, for a person to read.
        before: steps of the network before those that are counted.
        share_before: their share of the cost of all steps.
        step_share: the share of one step of the unit.
    """

    report: Reporter
    part: str
    where: str
    before: int
    share_before: float
    step_share: float

    def __call__(self, step: int, loss: float) -> None:
        """Report a step and its loss."""
        self.report(Advanced(STAGE, self.before + step, self.where, {"loss": loss}))

    def pace(self, step: int, found: bool) -> None:
        """Report that a step is over, and whether an earlier run took it."""
        share = self.share_before + step * self.step_share
        self.report(Paced(STAGE, self.before + step, min(share, 1.0), found))

    def behind(self, num_steps: int) -> _Progress:
        """The place after so many steps of the unit."""
        share_before = self.share_before + num_steps * self.step_share
        return replace(self, before=self.before + num_steps, share_before=share_before)


def _first_inputs(images: ImageRows, plan: QuantizationPlan, pool: ActivationPool) -> _Carried:
    store = store_images(images, pool)
    return _Carried(store, store, held_out_rows(len(images), plan.config))


def _quantize_unit(
    plan: QuantizationPlan,
    unit: UnitGraph,
    inputs: _Carried,
    pool: ActivationPool,
    context: RunContext,
    progress: _Progress,
) -> tuple[LearnedUnit, float, float | None, _Carried]:
    """Quantize one unit; its inputs are released, its outputs of both kinds are carried on.

    Returns:
        The unit, its relative error, that of the held-out rows, and the inputs of the next unit.
    """
    targets = run_over_store(unit.teacher, inputs.full, unit.rows, pool, context)
    initial = initial_step_sizes(plan.folded.graph, unit, inputs.quantized, plan.config, context)
    if plan.config.reconstruct:
        data = UnitData(inputs.full, inputs.quantized, targets, inputs.held_out)
        learned = _learn(plan, unit, initial, data, pool, context, progress)
    else:
        learned = LearnedUnit(_nearest_weights(plan, unit), initial, 0)
    if inputs.full is not inputs.quantized:
        inputs.full.release()  # before the next set is made: two sets and the new one are the most
    student = insert_quantizers(unit.teacher, unit.bits, learned.weights, learned.activations).to(context.device)
    outputs = run_over_store(student, inputs.quantized, unit.rows, pool, context)
    inputs.quantized.release()
    error, held_out_error = relative_errors(outputs, targets, inputs.held_out, context.workers)
    if not all(math.isfinite(share) for share in (error, held_out_error or 0.0)):
        raise NumbersError(
            f"Unit '{unit.name}': its outputs hold NaN or infinity on these images. Check the network's "
            "weights, and that the images are normalised for it."
        )
    return learned, error, held_out_error, _Carried(targets, outputs, inputs.held_out)


def _learn(
    plan: QuantizationPlan,
    unit: UnitGraph,
    initial: Mapping[str, ActivationQuantizer],
    data: UnitData,
    pool: ActivationPool,
    context: RunContext,
    progress: _Progress,
) -> LearnedUnit:
    """Learn a unit as a whole, or (`unit: layer`) its layers one after the other, each with the earlier ones finished.

    What an earlier run has finished is taken from the work folder.

    Raises:
        KeyboardInterrupt: the user has interrupted; what was done is kept.
        NumbersError: the loss is not finite, in float32 too.
    """
    config, graph = plan.config, plan.folded.graph
    by_layer = config.unit == "layer"
    finished = LearnedUnit({}, {}, 0)
    for stage, part in enumerate(layer_by_layer(graph, unit) if by_layer else [unit]):
        name = f"{progress.part}.{stage}" if by_layer else progress.part
        found, on_step = finished_part(name, context), progress.behind(stage * config.num_steps)
        if found is not None:
            on_step.pace(config.num_steps, True)
        else:
            own = data
            if part.output is not unit.output:
                targets = run_over_store(part.teacher, data.full_inputs, part.rows, pool, context)
                own = replace(data, targets=targets)
            with context.interrupts.held():
                for attempt in float32_retried(context, name):
                    with attempt:
                        task = make_task(part, plan, initial, finished, own, context.device)
                        taken = reconstruct(task, config, attempt.context, attempt.checkpoint, on_step, on_step.pace)
                        found = task.harden(taken)
                assert found is not None
                if context.workers.is_first:
                    context.work.finish(name, pack_unit(found))
            if context.interrupts.agreed(context.workers):
                raise KeyboardInterrupt
            if own is not data:
                own.targets.release()
        finished = finished.joined(found)
    return LearnedUnit(finished.weights, {**initial, **finished.activations}, finished.num_steps)


def _nearest_weights(plan: QuantizationPlan, unit: UnitGraph) -> dict[str, IntegerWeight]:
    """The unit's weights rounded to their initial grids, nothing learned."""
    weights = {}
    for layer in weight_layers(unit.teacher):
        weight, format = get_tensor(unit.teacher, layer.weight_key), weight_format(unit.bits.weights[layer.name])
        scale, zero_point = weight_grid(weight, format, plan.config.weight_range)
        weights[layer.name] = IntegerWeight.nearest(weight, scale, zero_point, format)
    return weights
