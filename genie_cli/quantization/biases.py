"""The biases of a finished unit: those that it learned, and those of an integer kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from genie_cli.models.graph.tensors import set_tensor
from genie_cli.quantization.plan import QuantizationPlan
from genie_cli.quantization.reconstruction.learned_unit import LearnedUnit
from genie_cli.quantization.units.unit_graph import UnitGraph
from genie_cli.student.integer_biases import integer_layers
from genie_cli.student.modules import ActivationQuantizer


def set_biases(plan: QuantizationPlan, unit: UnitGraph, biases: Mapping[str, Tensor]) -> None:
    """Let the graphs of a unit, whose targets are made, and of the network hold the biases that were learned."""
    for key, bias in biases.items():
        set_tensor(plan.folded.graph, key, bias)
        set_tensor(unit.teacher, key, bias)


def with_integer_biases(
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
