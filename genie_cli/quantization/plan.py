"""The plan: what a quantization will do, made once and read by its checks, its work, `inspect` and the summary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from genie_cli.config import QuantizeConfig
from genie_cli.errors import InputError, UsageError
from genie_cli.models.graph.coverage import Coverage, coverage
from genie_cli.models.graph.equalization import EqualizedGraph, equalize
from genie_cli.models.graph.folding import FoldedGraph, fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.slopes import slopes
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.logits import why_no_logits
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.activations.budget import ActivationBudget, activation_budget
from genie_cli.quantization.units.partition import Unit, reconstruction_units
from genie_cli.student.bit_assignment import assign_bits
from genie_cli.student.bit_plan import BitPlan
from genie_cli.student.build import insert_quantizers
from genie_cli.student.modules import FloatWeight, IntegerWeight
from genie_cli.student.protocol import Protocol, find_protocol
from genie_cli.student.slopes import integer_slopes


@dataclass(frozen=True)
class QuantizationPlan:
    """A quantization before it is done.

    Attributes:
        config: the recipe.
        protocol: who gets which bits.
        folded: the teacher with its batch norms folded; it names those that stay in float.
        teacher: the network.
        coverage: the share of the network that is quantized, and what stays in float.
        checks: rewrite -> distance of the rewritten network's answers from those of the user's own module.
        equalized: for DFQ, layer -> ``[O]``, the divisors of its output; else empty.
        bits: the bits of each weight and activation site.
        slopes: name -> slopes of leaky rectifiers as integers, whatever the protocol and the bits.
        units: the reconstruction units, front to back.
        finetuned: the whole network as one unit, where it is fine-tuned at the end; else None.
        budget: memory for calibration activations; None where there are none, or where nothing will run.
    """

    config: QuantizeConfig
    teacher: Teacher
    protocol: Protocol
    folded: FoldedGraph
    coverage: Coverage
    checks: dict[str, float]
    equalized: dict[str, Tensor]
    bits: BitPlan
    slopes: dict[str, IntegerWeight]
    units: tuple[Unit, ...]
    finetuned: Unit | None
    budget: ActivationBudget | None

    @property
    def stages(self) -> list[int]:
        """Rounds of steps of each unit: one, or one per layer where layers are learned one by one."""
        by_layer = self.config.reconstruct and self.config.unit == "layer"
        return [len(unit.layers) if by_layer else 1 for unit in self.units]

    @property
    def learned_together(self) -> tuple[Unit, ...]:
        """The units, and behind them the whole network where it is fine-tuned."""
        return self.units if self.finetuned is None else (*self.units, self.finetuned)

    @property
    def num_steps(self) -> int:
        """Steps of all units, and those of fine-tuning."""
        steps = self.config.num_steps if self.config.reconstruct else 1
        return steps * sum(self.stages) + (self.config.finetune_steps if self.finetuned is not None else 0)


def make_plan(teacher: Teacher, config: QuantizeConfig, device: torch.device | None) -> QuantizationPlan:
    """The plan of quantizing `teacher` by the recipe `config`.

    Args:
        teacher: the pre-trained network; it is left as it is.
        config: bits, protocol, recipe, memory limit.
        device: where it will run, whose free memory counts; None: the plan is only to be looked at.

    Raises:
        UsageError: unknown protocol, an override that matches no layer, activations in float that the protocol needs as
            integers, or a memory limit below what one batch needs.
        InputError: the network has nothing to quantize, or a batch norm cannot be folded.
    """
    protocol = find_protocol(config.protocol)
    folded = fold_batch_norms(teacher.graph, teacher.reference)
    equalized = EqualizedGraph(folded, {})
    if config.data_free and config.equalize:
        equalized = equalize(folded)
    graph = equalized.folded.graph
    bits = bit_plan(graph, config)
    units = tuple(reconstruction_units(graph, config.unit == "network", config.max_unit_layers))
    has_budget = device is not None and not config.data_free
    finetuned = reconstruction_units(graph, True, config.max_unit_layers)[0] if config.finetune_steps else None
    learned = [*units, *([finetuned] if finetuned is not None else [])]
    budget = activation_budget(graph, learned, config, device) if has_budget and device is not None else None
    return QuantizationPlan(
        config=config,
        teacher=teacher,
        protocol=protocol,
        folded=equalized.folded,
        coverage=coverage(graph, equalized.folded.unfolded),
        checks=_checked(teacher, folded, equalized.folded, bits),
        equalized=equalized.scales,
        bits=bits,
        slopes=integer_slopes(graph, config.weight_range),
        units=units,
        finetuned=finetuned,
        budget=budget,
    )


def bit_plan(folded: fx.GraphModule, config: QuantizeConfig) -> BitPlan:
    """The bits of each weight and activation site of a folded graph, as the recipe says.

    Raises:
        UsageError: as `make_plan`.
    """
    return assign_bits(
        folded,
        find_protocol(config.protocol),
        config.weight_bits,
        config.activation_bits,
        config.bits_override or {},
        config.weight_grid,
        config.bits_table,
    )


def check_loss(teacher: Teacher, config: QuantizeConfig) -> None:
    """Refuse a loss that a network's outputs cannot have.

    Raises:
        UsageError: class scores are compared, and the network has none, or one.
    """
    if config.loss != "kl":
        return
    mend = "use a preset with the squared error, or --set loss=squared"
    if teacher.logits is None:
        raise UsageError(
            f"Preset '{config.preset}' with loss = 'kl' compares the probabilities of classes, and "
            f"{why_no_logits(teacher.outputs)}; or {mend}."
        )
    if teacher.num_classes == 1:
        raise UsageError(f"loss = 'kl' compares the probabilities of classes, and this network has one output: {mend}.")


def _checked(teacher: Teacher, folded: FoldedGraph, final: FoldedGraph, bits: BitPlan) -> dict[str, float]:
    """Distances of the captured graph, the folded one, and a student whose quantizers do nothing.

    Raises:
        InputError: the student computes another function.
    """
    keys = {layer.name: layer.weight_key for layer in weight_layers(final.graph)}
    keys |= {slope.name: slope.key for slope in slopes(final.graph)}
    weights = {name: FloatWeight(get_tensor(final.graph, key)) for name, key in keys.items()}
    activations = {site.name: nn.Identity() for site in bits.activations}
    student = teacher.reference.distance(insert_quantizers(final.graph, bits, weights, activations))
    if not teacher.reference.holds(student):
        raise InputError(
            f"A quantized network of '{teacher.name}' would not compute what the network does: with quantizers that do "
            f"nothing its output differs by {student:.2g} of its size. Please report this network."
        )
    return {"capture": teacher.capture_error, "folding": folded.error or 0.0, "student": student}
