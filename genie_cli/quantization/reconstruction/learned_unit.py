"""A unit after its steps: integers and step sizes, and the form in which a work folder keeps them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from genie_cli.config import WeightGrid
from genie_cli.quantization.reconstruction.loss_log import LossRow, behind, rows_as_facts, saved_rows
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.work import Saved
from genie_cli.student.formats import activation_format, weight_format
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight


@dataclass(frozen=True)
class LearnedUnit:
    """A unit, or a part of one, after its steps.

    Attributes:
        weights: layer name -> integer weight.
        activations: site name -> quantizer.
        num_steps: steps taken; 0 where nothing was learned.
        biases: tensor's name -> bias ``[O]``, of those that were learned.
        log: the course of its loss.
    """

    weights: dict[str, IntegerWeight]
    activations: dict[str, ActivationQuantizer]
    num_steps: int
    biases: dict[str, Tensor] = field(default_factory=dict)
    log: tuple[LossRow, ...] = ()

    def joined(self, later: LearnedUnit) -> LearnedUnit:
        """This one and what was learned after it, which wins where both have a site."""
        weights, activations = {**self.weights, **later.weights}, {**self.activations, **later.activations}
        biases = {**self.biases, **later.biases}
        log = (*self.log, *behind(later.log, self.num_steps))
        return LearnedUnit(weights, activations, self.num_steps + later.num_steps, biases, log)

    def on(self, device: torch.device) -> LearnedUnit:
        """The same on `device`; integers and step sizes are moved, not copied."""
        weights = {name: weight.to(device) for name, weight in self.weights.items()}
        activations = {name: own.to(device) for name, own in self.activations.items()}
        biases = {key: bias.to(device) for key, bias in self.biases.items()}
        return LearnedUnit(weights, activations, self.num_steps, biases, self.log)


def finished_part(name: str, context: RunContext) -> LearnedUnit | None:
    """A unit that an earlier run has finished, if every process finds it."""
    saved = context.work.part(name)
    found = int(context.workers.sum_(torch.tensor(float(saved is not None))))
    return unpack_unit(saved, context.device) if saved is not None and found == context.workers.size else None


def pack_unit(unit: LearnedUnit) -> Saved:
    """Integers, scales and step sizes as tensors; layers and sites are numbered, their names are facts."""
    tensors = {}
    for i, weight in enumerate(unit.weights.values()):
        tensors.update({f"weight{i}.{part}": getattr(weight, part) for part in ("codes", "scale", "zero_point")})
    tensors.update({f"activation{i}": activation.step_size for i, activation in enumerate(unit.activations.values())})
    tensors.update({f"bias{i}": bias for i, bias in enumerate(unit.biases.values())})
    facts = {
        "weights": [[name, weight.format.bits] for name, weight in unit.weights.items()],
        "activations": [[name, own.format.bits, own.format.signed] for name, own in unit.activations.items()],
        "num_steps": unit.num_steps,
        "biases": [*unit.biases],
        **rows_as_facts(unit.log),
    }
    return Saved(tensors, facts)


def unpack_unit(saved: Saved, device: torch.device) -> LearnedUnit:
    """The unit that `pack_unit` was given, on `device`."""
    weights, activations = {}, {}
    for i, (name, bits) in enumerate(saved.facts["weights"]):
        codes, scale, zero_point = (saved.tensors[f"weight{i}.{part}"] for part in ("codes", "scale", "zero_point"))
        grid: WeightGrid = "symmetric" if codes.dtype == torch.int8 else "asymmetric"
        weights[name] = IntegerWeight(codes, scale, zero_point, weight_format(bits, grid)).to(device)
    for i, (name, bits, signed) in enumerate(saved.facts["activations"]):
        step_size = float(saved.tensors[f"activation{i}"])
        activations[name] = ActivationQuantizer(step_size, activation_format(bits, signed)).to(device)
    biases = {key: saved.tensors[f"bias{i}"].to(device) for i, key in enumerate(saved.facts.get("biases", ()))}
    return LearnedUnit(weights, activations, saved.facts["num_steps"], biases, tuple(saved_rows(saved)))
