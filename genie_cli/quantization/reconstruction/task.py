"""The task of learning one unit: its graph with slots for the weights, what learns, and the activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from genie_cli.models.graph.layers import WeightLayer, weight_layers
from genie_cli.models.graph.pooling import with_repeatable_pooling
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.quantization.activations.store import ActivationStore
from genie_cli.quantization.learned.activation import LearnedActivationQuantizer
from genie_cli.quantization.learned.bias import LearnedBias, read_biases_from
from genie_cli.quantization.learned.roundings import find_rounding
from genie_cli.quantization.learned.soft_rounding import largest_rate
from genie_cli.quantization.learned.weight import LearnedWeight
from genie_cli.quantization.plan import QuantizationPlan
from genie_cli.quantization.reconstruction.learned_unit import LearnedUnit
from genie_cli.quantization.reconstruction.loss_log import LossRow
from genie_cli.quantization.units.unit_graph import UnitGraph
from genie_cli.student.grid import weight_grid
from genie_cli.student.modules import ActivationQuantizer


class WeightSlot(nn.Module):
    """The place where the unit's graph reads a weight: filled once per step, read by the layer."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.value: Tensor | None = None

    def forward(self) -> Tensor:
        """The weight of this step."""
        assert self.value is not None
        return self.value


@dataclass(frozen=True)
class UnitData:
    """The activations that a unit learns from, row by row.

    Attributes:
        full_inputs: the teacher's inputs of the unit, each ``[n, ...]``.
        quantized_inputs: the same from the already quantized units before.
        targets: the teacher's outputs of the unit, each ``[n, C, ...]``; empty where a step makes them.
        target_weights: the weight of each output in the loss; 0: it is not compared.
        held_out: rows that are never trained on; what early stopping watches.
    """

    full_inputs: tuple[ActivationStore, ...]
    quantized_inputs: tuple[ActivationStore, ...]
    targets: tuple[ActivationStore, ...]
    target_weights: tuple[float, ...]
    held_out: Tensor


@dataclass(frozen=True)
class UnitTask:
    """The task of learning one unit.

    Attributes:
        name: the unit's name.
        student: graph of the unit; its weights come from `slots`.
        slots: layer name -> the place where the graph reads its weight.
        weights: layer name -> the weight that learns.
        activations: site name -> the quantizer that learns.
        data: the activations that it learns from.
        biases: tensor's name -> the bias that learns.
        teacher: where a step mixes its inputs, the graph that makes their targets; None: they are stored.
        rate_share: all learning rates are taken times this.
        log: the course of its loss so far.
    """

    name: str
    student: fx.GraphModule
    slots: Mapping[str, WeightSlot]
    weights: Mapping[str, LearnedWeight]
    activations: Mapping[str, LearnedActivationQuantizer]
    data: UnitData
    biases: Mapping[str, LearnedBias] = field(default_factory=dict)
    teacher: fx.GraphModule | None = None
    rate_share: float = 1.0
    log: list[LossRow] = field(default_factory=list)

    def use(self, weights: Sequence[Tensor], step_sizes: Sequence[Tensor], biases: Sequence[Tensor] = ()) -> None:
        """Let the student run on these, in their order: a weight per layer, a step size ``[1]`` per site, biases."""
        for slot, weight in zip(self.slots.values(), weights, strict=True):
            slot.value = weight
        for activation, step_size in zip(self.activations.values(), step_sizes, strict=True):
            activation.step_size = step_size
        for bias, value in zip(self.biases.values(), biases, strict=True):
            bias.value = value

    def use_finished_weights(self) -> None:
        """Let the student run on the integers that the weights would be now."""
        for name, weight in self.weights.items():
            self.slots[name].value = weight.harden()()

    def let_go(self) -> None:
        """Keep neither weights nor the graph of their gradients: a recording must not find that of an earlier step."""
        for slot in self.slots.values():
            slot.value = None
        for activation in self.activations.values():
            activation.step_size = activation.step_size.detach()
        for bias in self.biases.values():
            bias.value = bias.value.detach()

    def harden(self, num_steps: int) -> LearnedUnit:
        """The unit as it is after so many steps."""
        weights = {name: weight.harden() for name, weight in self.weights.items()}
        activations = {name: activation.harden() for name, activation in self.activations.items()}
        biases = {key: bias.value.detach().clone() for key, bias in self.biases.items()}
        return LearnedUnit(weights, activations, num_steps, biases, tuple(self.log))


def make_task(
    part: UnitGraph,
    plan: QuantizationPlan,
    initial: Mapping[str, ActivationQuantizer],
    finished: LearnedUnit,
    data: UnitData,
    device: torch.device,
) -> UnitTask:
    """The task of a unit, or of a part of it.

    Args:
        part: its graph and bits.
        plan: the recipe, and the multipliers of folded batch norms.
        initial: site name -> where its step size starts.
        finished: weights, step sizes and biases that are in `part` and learn no more.
        data: the activations that it learns from.
        device: where it is computed.
    """
    layers = [layer for layer in weight_layers(part.teacher) if layer.name not in finished.weights]
    weights = {layer.name: _start_weight(part, layer, plan).to(device) for layer in layers}
    slots = {name: WeightSlot() for name in weights}
    activations = {
        site.name: LearnedActivationQuantizer(
            float(initial[site.name].step_size), initial[site.name].format, plan.config.drop_prob
        ).to(device)
        for site in part.bits.activations
        if site.name not in finished.activations
    }
    all_weights: dict[str, nn.Module] = {**slots, **{name: w.to(device) for name, w in finished.weights.items()}}
    all_activations: dict[str, nn.Module] = {**finished.activations, **activations}
    student = with_repeatable_pooling(part.student(all_weights, all_activations))
    keys = [layer.bias_key for layer in layers if layer.bias_key is not None] if plan.config.bias_lr else []
    biases = {key: LearnedBias(get_tensor(part.teacher, key)).to(device) for key in keys}
    finished_biases = {key: LearnedBias(bias) for key, bias in finished.biases.items()}
    read_biases_from(student, {**finished_biases, **biases})
    return UnitTask(part.name, student.to(device), slots, weights, activations, data, biases)


def _start_weight(part: UnitGraph, layer: WeightLayer, plan: QuantizationPlan) -> LearnedWeight:
    """A weight on its initial grid, and how far an offset of 1 moves its step sizes."""
    config, weight = plan.config, get_tensor(part.teacher, layer.weight_key)
    format = part.bits.weight_format(layer.name)
    scale, zero_point = weight_grid(weight, format, config.weight_range)
    offset_scale = scale
    if config.weight_step_space == "checkpoint":
        # The step of the checkpoint's weight moves by the rate; folded, that is |gamma / sigma| as much.
        multiplier = plan.folded.multipliers.get(layer.name, torch.ones(len(scale)))
        offset_scale = multiplier.abs().view(-1, 1).to(scale.device)
    if config.weight_step_lr:
        offset_scale = torch.minimum(offset_scale, largest_rate(scale, format) / config.weight_step_lr)
    return find_rounding(config.rounding).make(weight, scale, zero_point, format, offset_scale)
