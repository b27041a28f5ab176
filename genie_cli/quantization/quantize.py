"""GENIE-M over a whole network: unit by unit, front to back, activations carried on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from genie_cli.artifacts.details import Histograms, histograms_of
from genie_cli.errors import NumbersError
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.placement import move
from genie_cli.quantization.activations.carried import Carried
from genie_cli.quantization.activations.errors import relative_errors
from genie_cli.quantization.activations.passing import ImageRows, run_over_stores, store_images
from genie_cli.quantization.activations.pool import ActivationPool
from genie_cli.quantization.activations.step_sizes import initial_step_sizes
from genie_cli.quantization.biases import set_biases, with_integer_biases
from genie_cli.quantization.closed_form.unit import solve_unit
from genie_cli.quantization.finetuning import NAME, finetune
from genie_cli.quantization.nearest_rounding import nearest_weight
from genie_cli.quantization.output_errors import output_errors_of
from genie_cli.quantization.plan import QuantizationPlan
from genie_cli.quantization.reconstruction.batches import held_out_rows
from genie_cli.quantization.reconstruction.learned_unit import LearnedUnit, finished_part, pack_unit
from genie_cli.quantization.reconstruction.reconstruct import reconstruct
from genie_cli.quantization.reconstruction.task import UnitData, make_task
from genie_cli.quantization.result import STAGE, QuantizedNetwork, UnitRecord, UnitReport
from genie_cli.quantization.stage import Stage, StageProgress
from genie_cli.quantization.step_cost import step_cost_shares
from genie_cli.quantization.target_weights import target_weights
from genie_cli.quantization.units.partition import Unit
from genie_cli.quantization.units.unit_graph import UnitGraph, cut_out, layer_by_layer
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Advanced, StageFinished, StageStarted
from genie_cli.runtime.retry import float32_retried
from genie_cli.runtime.settings import release_freed_memory, settled_objects
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight

_LOOKED_AT = 32
"""Images whose activations are counted for a report."""


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
    context.report(StageStarted(STAGE, plan.num_steps))
    shares = step_cost_shares(plan)
    weights: dict[str, IntegerWeight] = {}
    activations: dict[str, ActivationQuantizer] = {}
    reports, records = [], {}
    done = 0
    with settled_objects(), ActivationPool(context.device, budget.device, budget.host, context.report) as pool:
        stage = Stage(plan, pool, context)
        network = finetuning = None
        if plan.finetuned is not None:  # cut out while its biases are the teacher's
            network = cut_out(graph, plan.finetuned, plan.bits, context.device, plan.slopes)
        carried = _first_inputs(stage, images)
        for position, (unit, num_stages) in enumerate(zip(plan.units, plan.stages, strict=True)):
            where = f"unit {position + 1}/{len(plan.units)} {unit.name}"
            share = shares[position] / (steps * num_stages)
            progress = StageProgress(context.report, f"unit{position}", where, done, sum(shares[:position]), share)
            learned, report, output = _quantize_unit(stage, unit, carried, activations, progress)
            done += steps * num_stages
            context.report(Advanced(STAGE, done, where, {"error": report.relative_error}))
            reports.append(report)
            records[unit.name] = UnitRecord(learned.log, output)
            release_freed_memory()
            weights.update((name, weight.cpu()) for name, weight in learned.weights.items())
            activations.update((name, activation.cpu()) for name, activation in learned.activations.items())
        if network is not None:
            share = shares[-1] / config.finetune_steps
            progress = StageProgress(context.report, NAME, NAME, done, sum(shares[:-1]), share)
            finished = LearnedUnit(weights, activations, 0)
            learned, finetuning = finetune(stage, network, finished, images, carried, progress)
            weights, activations = learned.weights, learned.activations
            records[NAME] = UnitRecord(learned.log, None)
        output_errors = output_errors_of(stage, images, carried, activations)
        memory = pool.peak
    move(graph, torch.device("cpu"))
    context.report(StageFinished(STAGE))
    return QuantizedNetwork(plan, weights, activations, tuple(reports), memory, output_errors, records, finetuning)


def _first_inputs(stage: Stage, images: ImageRows) -> Carried:
    (entering,) = stage.plan.units[0].entering
    return Carried(entering, store_images(images, stage.pool), held_out_rows(len(images), stage.plan.config))


def _quantize_unit(
    stage: Stage,
    unit: Unit,
    carried: Carried,
    learned_before: Mapping[str, ActivationQuantizer],
    progress: StageProgress,
) -> tuple[LearnedUnit, UnitReport, Histograms]:
    """Quantize one unit: what enters it and is not needed behind it is released, its outputs are carried on.

    Args:
        stage: what all units share.
        unit: the unit.
        carried: the activations in front of it; afterwards those behind it.
        learned_before: site name -> quantizer, of the earlier units.
        progress: where it is.

    Returns:
        What it has learned, how it came out, and the values of its first output.
    """
    plan, pool, context = stage.plan, stage.pool, stage.context
    part = cut_out(plan.folded.graph, unit, plan.bits, context.device, plan.slopes)
    finished = {name: learned_before[name].to(context.device) for name in sorted(part.read_before)}
    full, quantized = carried.full(unit.sources), carried.quantized(unit.sources)
    targets = run_over_stores(part.teacher, full, part.rows, pool, context)
    initial = initial_step_sizes(plan.folded.graph, part, quantized, plan.config, context)
    learned = LearnedUnit({}, finished, 0)
    if plan.config.reconstruct:
        data = UnitData(full, quantized, targets, target_weights(stage, part.outputs, targets), carried.held_out)
        learned = _learn(stage, part, learned, initial, data, progress)
    elif plan.config.closed_form:
        learned = solve_unit(stage, part, initial, finished, full, quantized)
    else:
        layers = weight_layers(part.teacher)
        nearest = {layer.name: nearest_weight(part, layer, plan.config) for layer in layers}
        learned = learned.joined(LearnedUnit(nearest, initial, 0))
    set_biases(plan, part, learned.biases)
    if plan.protocol.every_tensor:
        learned = with_integer_biases(plan, part, learned, learned_before)
    carried.add_full(unit.outputs, targets, unit.passing)  # before the next set is made: two and the new one are most
    student = part.student(learned.weights, learned.activations).to(context.device)
    outputs = run_over_stores(student, quantized, part.rows, pool, context)
    carried.add_quantized(unit.outputs, outputs, unit.passing)
    errors = relative_errors(outputs, targets, carried.held_out, context.workers)
    if not all(math.isfinite(share or 0.0) for share in errors):
        raise NumbersError(
            f"Unit '{unit.name}': its outputs hold NaN or infinity on these images. Check the network's "
            "weights, and that the images are normalised for it."
        )
    first, last = 0, min(_LOOKED_AT, len(targets[0]))
    values = histograms_of(targets[0].read(first, last), outputs[0].read(first, last))
    return learned, UnitReport(unit.name, unit.layers, learned.num_steps, *errors, len(unit.outputs)), values


def _learn(
    stage: Stage,
    unit: UnitGraph,
    finished: LearnedUnit,
    initial: Mapping[str, ActivationQuantizer],
    data: UnitData,
    progress: StageProgress,
) -> LearnedUnit:
    """Learn a unit as a whole, or (`unit: layer`) its layers one after the other, each with the earlier ones finished.

    What an earlier run has finished is taken from the work folder. `finished` has the sites that are learned already.

    Raises:
        KeyboardInterrupt: the user has interrupted; what was done is kept.
        NumbersError: the loss is not finite, in float32 too.
    """
    plan, pool, context = stage.plan, stage.pool, stage.context
    config, graph = plan.config, plan.folded.graph
    by_layer = config.unit == "layer"
    for number, part in enumerate(layer_by_layer(graph, unit) if by_layer else [unit]):
        name = f"{progress.part}.{number}" if by_layer else progress.part
        found, on_step = finished_part(name, context), progress.behind(number * config.num_steps)
        if found is not None:
            on_step.pace(config.num_steps, True)
        else:
            own = data
            if part.outputs != unit.outputs:
                targets = run_over_stores(part.teacher, data.full_inputs, part.rows, pool, context)
                own = replace(data, targets=targets, target_weights=target_weights(stage, part.outputs, targets))
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
                for store in own.targets:
                    store.release()
        finished = finished.joined(found)
    return replace(finished, activations={**initial, **finished.activations})
