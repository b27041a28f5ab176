"""Fine-tuning of a network whose codes are finished: all step sizes and biases together, against the teacher's outputs.

Units are learned one after the other, and none knows what its error does to the answer. Here every code stays, and what
scales and shifts them learns from the outputs alone. The idea is that of the last phase of EfficientQAT (Chen et al.,
2024), which trains step sizes with the integers fixed; biases and images mixed in pairs (mixup) are added to it. Images
are mixed anew in each step, so that a few hundred of them do not wear out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from genie_cli.config import QuantizeConfig
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.pooling import with_repeatable_pooling
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.activations.carried import Carried
from genie_cli.quantization.activations.passing import ImageRows, run_over_stores, store_images
from genie_cli.quantization.biases import set_biases, with_integer_biases
from genie_cli.quantization.learned.activation import LearnedActivationQuantizer
from genie_cli.quantization.learned.bias import LearnedBias, read_biases_from
from genie_cli.quantization.learned.scaled_weight import ScaledWeight
from genie_cli.quantization.mixed_loss import mixed_loss
from genie_cli.quantization.reconstruction.learned_unit import LearnedUnit, finished_part, pack_unit
from genie_cli.quantization.reconstruction.loss import find_loss
from genie_cli.quantization.reconstruction.reconstruct import reconstruct
from genie_cli.quantization.reconstruction.task import UnitData, UnitTask, WeightSlot
from genie_cli.quantization.result import FinetuningReport
from genie_cli.quantization.stage import Stage, StageProgress
from genie_cli.quantization.target_weights import target_weights
from genie_cli.quantization.units.unit_graph import UnitGraph
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Note
from genie_cli.runtime.retry import float32_retried

NAME = "fine-tuning"
"""The name of its progress and of its part of the work folder."""
BIAS_RATE = 0.01
"""Rate of the biases, in shares of the root mean square of their layer's."""
_STEPS_OF_FULL_RATE = 100
"""So many steps bear the largest rates; fewer take smaller ones in proportion, with which they do not end astray."""
_LAYERS_OF_FULL_RATE = 24
"""So many weight layers bear the largest rates; more take smaller ones, with the square of the share.

What all layers move by adds up at the outputs, and the loss grows with the square of it."""
_LEFT_OUT = (
    "the fine-tuning at the end is left out: it raised the loss on mixed images from {:.4g} to {:.4g}. "
    "More --num-steps or a larger --finetune-share may help."
)


def finetune(
    stage: Stage,
    network: UnitGraph,
    finished: LearnedUnit,
    images: ImageRows,
    carried: Carried,
    progress: StageProgress,
) -> tuple[LearnedUnit, FinetuningReport]:
    """Learn all step sizes and biases together; the biases of the network's graph are those that were learned.

    A few steps of a deep network can make it worse. What has a larger loss afterwards than before, on images that
    are mixed in pairs, is not kept, and a note says so.

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
    outputs = network.outputs  # in the order in which its graphs give them, which need not be that of the network
    weights = target_weights(replace(stage, plan=replace(plan, config=config)), outputs, carried.full(outputs))
    store = store_images(images, stage.pool)
    keys = [layer.bias_key for layer in weight_layers(network.teacher) if layer.bias_key is not None]
    biases = {key: get_tensor(plan.folded.graph, key).clone() for key in keys}
    teacher = copy.deepcopy(network.teacher)  # the network's own graph takes the biases that are learned
    data = UnitData((store,), (store,), (), weights, carried.held_out)
    learned = _learned(network, finished, biases, data, config, context, progress)
    rows, compare = min(config.batch_size, network.rows), find_loss(config.loss)
    set_biases(plan, network, biases)
    student = network.student(finished.weights, finished.activations).to(context.device)
    before = mixed_loss(student, teacher, images, rows, compare, weights, context)
    set_biases(plan, network, learned.biases)
    if plan.protocol.every_tensor:
        learned = with_integer_biases(plan, network, learned, {})
    student = network.student(learned.weights, learned.activations).to(context.device)
    after = mixed_loss(student, teacher, images, rows, compare, weights, context)
    report = FinetuningReport(learned.num_steps, before, after, kept=after <= before)
    if report.kept:
        carried.add_quantized(outputs, run_over_stores(student, (store,), network.rows, stage.pool, context), ())
    else:
        context.report(Note(_LEFT_OUT.format(before, after)))
        set_biases(plan, network, biases)
        learned = replace(finished, log=learned.log)
    store.release()
    if context.interrupts.agreed(context.workers):
        raise KeyboardInterrupt
    return learned.on(torch.device("cpu")), report


def _learned(
    network: UnitGraph,
    finished: LearnedUnit,
    biases: Mapping[str, Tensor],
    data: UnitData,
    config: QuantizeConfig,
    context: RunContext,
    progress: StageProgress,
) -> LearnedUnit:
    """The finished network after the steps at the end, or what an earlier run has kept of it.

    Args:
        network: the whole of it as one unit, with the teacher's biases.
        finished: all codes and step sizes.
        biases: tensor's name -> bias, where it starts.
        data: the images.
        config: the recipe.
        context: what to run on.
        progress: where it is.
    """
    learned = finished_part(NAME, context)
    if learned is not None:
        progress.pace(config.num_steps, True)
        return learned
    with context.interrupts.held():
        for attempt in float32_retried(context, NAME):
            with attempt:
                own = finished.on(context.device)
                task = finetuning_task(network, own, biases, data, config.num_steps, context.device)
                taken = reconstruct(task, config, attempt.context, attempt.checkpoint, progress, progress.pace)
                learned = task.harden(taken)
        assert learned is not None
        if context.workers.is_first:
            context.work.finish(NAME, pack_unit(learned))
    return learned


def finetuning_config(config: QuantizeConfig, teacher: Teacher) -> QuantizeConfig:
    """The recipe of the steps at the end; `rate_share` is taken of its rates, the largest safe ones.

    Class probabilities are compared where they are all that the network returns. Of several outputs each counts, by its
    squared error: scales and biases that learned from the class scores alone would spoil the others.
    """
    is_classifier = teacher.logits is not None and teacher.num_classes != 1 and len(teacher.outputs.tensors) == 1
    return config.model_copy(
        update={
            "num_steps": config.finetune_steps,
            "finetune_share": 0.0,
            "loss": "kl" if is_classifier else "squared",
            "rounding": "genie",
            "rounding_lr": 0.0,
            "weight_step_lr": 1.0,
            "activation_step_lr": math.inf,
            "bias_lr": BIAS_RATE,
            "drop_prob": 0.0,
            "patience": None,
        }
    )


def finetuning_task(
    network: UnitGraph,
    finished: LearnedUnit,
    biases: Mapping[str, Tensor],
    data: UnitData,
    num_steps: int,
    device: torch.device,
) -> UnitTask:
    """The task of learning all scales and biases of a network.

    Args:
        network: the whole of it as one unit, on the device where it learns.
        finished: all codes, and the step sizes where they start, on the device.
        biases: tensor's name -> bias ``[O]``, where it starts.
        data: the images, and the weight of each output in the loss; targets are made in each step.
        num_steps: steps that it learns.
        device: where it is computed.
    """
    own = {name: ScaledWeight(finished.weights[name]).to(device) for name in network.bits.weights}
    slots = {name: WeightSlot() for name in own}
    sites = {
        site.name: LearnedActivationQuantizer(
            float(finished.activations[site.name].step_size), finished.activations[site.name].format, drop_prob=0.0
        ).to(device)
        for site in network.bits.activations
    }
    student = with_repeatable_pooling(network.student(slots, sites)).to(device)
    learned = {key: LearnedBias(bias).to(device) for key, bias in biases.items()}
    read_biases_from(student, learned)
    teacher = with_repeatable_pooling(network.teacher)
    share = rate_share(num_steps, len(own))
    return UnitTask(NAME, student, slots, own, sites, data, learned, teacher, share)


def rate_share(num_steps: int, num_layers: int) -> float:
    """The share of the largest safe rates that a fine-tuning takes: 1, and less for few steps and for deep networks."""
    return min(1.0, num_steps / _STEPS_OF_FULL_RATE) * min(1.0, _LAYERS_OF_FULL_RATE / max(num_layers, 1)) ** 2
