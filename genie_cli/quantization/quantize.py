"""GENIE-M over a whole network: unit by unit, front to back, activations carried on."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from genie_cli.artifacts.details import Histograms, histograms_of
from genie_cli.errors import NumbersError
from genie_cli.models.graph.cuts import data_nodes, output_nodes
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.outputs import as_tuple
from genie_cli.models.graph.placement import move
from genie_cli.models.graph.tensors import get_tensor, set_tensor
from genie_cli.quantization.activations.carried import Carried
from genie_cli.quantization.activations.errors import mean_energies, relative, relative_errors
from genie_cli.quantization.activations.passing import ImageRows, run_over_stores, store_images
from genie_cli.quantization.activations.pool import ActivationPool
from genie_cli.quantization.activations.step_sizes import initial_step_sizes
from genie_cli.quantization.activations.store import ActivationStore
from genie_cli.quantization.finetuning import NAME, finetuning_config, finetuning_task
from genie_cli.quantization.plan import QuantizationPlan
from genie_cli.quantization.reconstruction.batches import held_out_rows
from genie_cli.quantization.reconstruction.learned_unit import LearnedUnit, finished_part, pack_unit
from genie_cli.quantization.reconstruction.loss import output_weights
from genie_cli.quantization.reconstruction.reconstruct import reconstruct
from genie_cli.quantization.reconstruction.task import UnitData, make_task
from genie_cli.quantization.result import STAGE, QuantizedNetwork, UnitRecord, UnitReport
from genie_cli.quantization.step_cost import step_cost_shares
from genie_cli.quantization.units.partition import Unit
from genie_cli.quantization.units.unit_graph import UnitGraph, cut_out, layer_by_layer, rows_at_once
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Advanced, Paced, Reporter, StageFinished, StageStarted
from genie_cli.runtime.retry import float32_retried
from genie_cli.runtime.settings import release_freed_memory, settled_objects
from genie_cli.student.grid import weight_grid
from genie_cli.student.integer_biases import integer_layers
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
    network = None
    if plan.finetuned is not None:  # cut out while its biases are the teacher's
        network = cut_out(graph, plan.finetuned, plan.bits, context.device, plan.slopes)
    steps = config.num_steps if config.reconstruct else 1
    context.report(StageStarted(STAGE, plan.num_steps))
    shares = step_cost_shares(plan)
    weights: dict[str, IntegerWeight] = {}
    activations: dict[str, ActivationQuantizer] = {}
    reports, records = [], {}
    done = 0
    with settled_objects(), ActivationPool(context.device, budget.device, budget.host, context.report) as pool:
        stage = _Stage(plan, pool, context)
        carried = _first_inputs(stage, images)
        for position, (unit, num_stages) in enumerate(zip(plan.units, plan.stages, strict=True)):
            where = f"unit {position + 1}/{len(plan.units)} {unit.name}"
            share = shares[position] / (steps * num_stages)
            progress = _Progress(context.report, f"unit{position}", where, done, sum(shares[:position]), share)
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
            progress = _Progress(context.report, NAME, NAME, done, sum(shares[:-1]), share)
            learned = _finetune(stage, network, LearnedUnit(weights, activations, 0), images, carried, progress)
            weights, activations = learned.weights, learned.activations
            records[NAME] = UnitRecord(learned.log, None)
        output_errors = _output_errors(stage, images, carried, activations)
        memory = pool.peak
    move(graph, torch.device("cpu"))
    context.report(StageFinished(STAGE))
    return QuantizedNetwork(plan, weights, activations, tuple(reports), memory, output_errors, records)


@dataclass(frozen=True)
class _Stage:
    """The things that all units share.

    Attributes:
        plan: what to do.
        pool: where activations are kept.
        context: what to run on.
    """

    plan: QuantizationPlan
    pool: ActivationPool
    context: RunContext


@torch.no_grad()
def _output_errors(
    stage: _Stage, images: ImageRows, carried: Carried, activations: Mapping[str, ActivationQuantizer]
) -> dict[str, float]:
    """Output -> squared error of the quantized network against the unfolded teacher, over the teacher's own norm.

    Args:
        stage: what to run on, of which network.
        images: the calibration images.
        carried: what is alive behind the last unit.
        activations: site name -> quantizer.
    """
    plan, context = stage.plan, stage.context
    teacher, nodes = move(plan.teacher.graph, context.device), output_nodes(plan.folded.graph)
    quantizers = _quantizers_of_outputs(plan, nodes, activations)
    sums = torch.zeros(len(nodes), 2, dtype=torch.float64)
    rows = rows_at_once(data_nodes(teacher), context.device)
    for first in range(0, len(images), rows):
        last = min(first + rows, len(images))
        answers = as_tuple(context.splitter(teacher, images[first:last].to(context.device)))
        for own, node, store, answer in zip(sums, nodes, carried.quantized(nodes), answers, strict=True):
            value, wanted = store.read(first, last), answer.double()
            found = quantizers[node].to(value.device)(value.float()) if node in quantizers else value
            error = found.double() - wanted
            own += torch.stack([error.square().sum(), wanted.square().sum()]).cpu()
    move(teacher, torch.device("cpu"))
    errors = relative(context.workers.sum_(sums))
    return dict(zip(plan.teacher.outputs.names, errors, strict=True))


def _quantizers_of_outputs(
    plan: QuantizationPlan, outputs: Sequence[fx.Node], activations: Mapping[str, ActivationQuantizer]
) -> dict[fx.Node, ActivationQuantizer]:
    """Those of outputs that a node reads too: units carry such a tensor on as it is before its quantizer."""
    sites = {site.node: site.name for site in plan.bits.activations}
    are_read = [node for node in outputs if any(reader.op != "output" for reader in node.users)]
    return {node: copy.deepcopy(activations[sites[node.name]]) for node in are_read if node.name in sites}


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


def _first_inputs(stage: _Stage, images: ImageRows) -> Carried:
    (entering,) = stage.plan.units[0].entering
    return Carried(entering, store_images(images, stage.pool), held_out_rows(len(images), stage.plan.config))


def _quantize_unit(
    stage: _Stage,
    unit: Unit,
    carried: Carried,
    learned_before: Mapping[str, ActivationQuantizer],
    progress: _Progress,
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
        data = UnitData(full, quantized, targets, _target_weights(stage, part.outputs, targets), carried.held_out)
        learned = _learn(stage, part, learned, initial, data, progress)
    else:
        learned = learned.joined(LearnedUnit(_nearest_weights(plan, part), initial, 0))
    _set_biases(plan, part, learned.biases)
    if plan.protocol.every_tensor:
        learned = _with_integer_biases(plan, part, learned, learned_before)
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


def _finetune(
    stage: _Stage, network: UnitGraph, finished: LearnedUnit, images: ImageRows, carried: Carried, progress: _Progress
) -> LearnedUnit:
    """Learn all step sizes and biases together; the biases of the network's graph are those that were learned.

    Args:
        stage: what all units share.
        network: the whole of it as one unit, with the teacher's biases.
        finished: all codes and step sizes.
        images: the calibration images.
        carried: what is alive behind the last unit; afterwards the outputs of the tuned network.
        progress: where it is.

    Raises:
        KeyboardInterrupt: the user has interrupted; what was done is kept.
        NumbersError: the loss is not finite, in float32 too.
    """
    plan, context = stage.plan, stage.context
    config = finetuning_config(plan.config, plan.teacher)
    outputs = output_nodes(plan.folded.graph)
    weights = _target_weights(replace(stage, plan=replace(plan, config=config)), outputs, carried.full(outputs))
    store = store_images(images, stage.pool)
    keys = [layer.bias_key for layer in weight_layers(network.teacher) if layer.bias_key is not None]
    biases = {key: get_tensor(plan.folded.graph, key) for key in keys}
    learned = finished_part(NAME, context)
    if learned is None:
        with context.interrupts.held():
            for attempt in float32_retried(context, NAME):
                with attempt:
                    own = finished.on(context.device)
                    data = UnitData((store,), (store,), (), weights, carried.held_out)
                    task = finetuning_task(network, own.weights, own.activations, biases, data, context.device)
                    taken = reconstruct(task, config, attempt.context, attempt.checkpoint, progress, progress.pace)
                    learned = task.harden(taken)
            assert learned is not None
            if context.workers.is_first:
                context.work.finish(NAME, pack_unit(learned))
    else:
        progress.pace(config.num_steps, True)
    _set_biases(plan, network, learned.biases)
    if plan.protocol.every_tensor:
        learned = _with_integer_biases(plan, network, learned, {})
    student = network.student(learned.weights, learned.activations).to(context.device)
    carried.add_quantized(outputs, run_over_stores(student, (store,), network.rows, stage.pool, context), ())
    store.release()
    if context.interrupts.agreed(context.workers):
        raise KeyboardInterrupt
    return learned.on(torch.device("cpu"))


def _target_weights(stage: _Stage, outputs: Sequence[fx.Node], targets: Sequence[ActivationStore]) -> tuple[float, ...]:
    """The weights of outputs in the loss: the KL divergence is that of the class scores alone."""
    if len(outputs) == 1:
        return (1.0,)
    if stage.plan.config.loss == "kl":
        logits = stage.plan.teacher.logits
        assert logits is not None, "check_loss has refused it"
        scores = output_nodes(stage.plan.folded.graph)[logits.place]
        return tuple(float(node is scores) for node in outputs)
    return output_weights(mean_energies(targets, stage.context.workers))


def _learn(
    stage: _Stage,
    unit: UnitGraph,
    finished: LearnedUnit,
    initial: Mapping[str, ActivationQuantizer],
    data: UnitData,
    progress: _Progress,
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
                own = replace(data, targets=targets, target_weights=_target_weights(stage, part.outputs, targets))
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


def _set_biases(plan: QuantizationPlan, unit: UnitGraph, biases: Mapping[str, Tensor]) -> None:
    """Let the graphs of a unit, whose targets are made, and of the network hold the biases that were learned."""
    for key, bias in biases.items():
        set_tensor(plan.folded.graph, key, bias)
        set_tensor(unit.teacher, key, bias)


def _with_integer_biases(
    plan: QuantizationPlan, unit: UnitGraph, learned: LearnedUnit, before: Mapping[str, ActivationQuantizer]
) -> LearnedUnit:
    """A finished unit whose biases are those of an integer kernel, in its own graph and in that of the network.

    Args:
        plan: what is done, of which network.
        unit: the unit's graph.
        learned: its integers and step sizes.
        before: site name -> quantizer, of the earlier units.
    """
    graph, activations = plan.folded.graph, {**before, **learned.activations}
    layers = integer_layers(graph, plan.bits.activations, learned.weights, activations)
    for key, bias in layers.biases.items():
        set_tensor(graph, key, bias)
        set_tensor(unit.teacher, key, bias)
    return replace(learned, weights=layers.weights)


def _nearest_weights(plan: QuantizationPlan, unit: UnitGraph) -> dict[str, IntegerWeight]:
    """The unit's weights rounded to their initial grids, nothing learned."""
    weights = {}
    for layer in weight_layers(unit.teacher):
        weight, format = get_tensor(unit.teacher, layer.weight_key), unit.bits.weight_format(layer.name)
        scale, zero_point = weight_grid(weight, format, plan.config.weight_range)
        weights[layer.name] = IntegerWeight.nearest(weight, scale, zero_point, format)
    return weights
