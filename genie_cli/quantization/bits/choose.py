"""From a plan and the costs of all widths to the plan whose bits fit the budget."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from genie_cli.artifacts.images import ImageSet
from genie_cli.artifacts.metadata import Arithmetic
from genie_cli.config.bit_table import MAX_BITS, MIN_BITS
from genie_cli.quantization.bits.budget import budget_of
from genie_cli.quantization.bits.operations import layer_operations, num_bitops
from genie_cli.quantization.bits.search import Problem, free_tensors, solve, table_of
from genie_cli.quantization.bits.sensitivity import Costs, costs_of
from genie_cli.quantization.bits.size import folder_size
from genie_cli.quantization.plan import QuantizationPlan, bit_plan, make_plan
from genie_cli.student.bit_plan import BitPlan

LONGEST_ARITHMETIC = "bfloat16"


@dataclass(frozen=True)
class Choice:
    """Bits that were chosen.

    Attributes:
        problem: what they were chosen from.
        bits: of all layers and sites.
    """

    problem: Problem
    bits: BitPlan

    @property
    def num_bytes(self) -> int:
        """Most bytes of the folder."""
        return self.problem.size.num_bytes(self.bits.weights)

    @property
    def num_bitops(self) -> int:
        """Bit operations per image."""
        return num_bitops(self.problem.operations, self.bits)

    @property
    def cost(self) -> float:
        """The estimate: the sum of the costs of all tensors that were free."""
        return self.problem.cost(self.bits)


def make_problem(plan: QuantizationPlan, images: ImageSet | None, kernels: str) -> Problem:
    """The choice that a plan's recipe leaves, without costs: each free width costs 0.

    Layers and sites that the protocol or overrides exempt keep their bits. Activations are free where bit operations
    are bounded: they take no bytes.

    Args:
        plan: of the uniform network.
        images: the calibration images, which the metadata name.
        kernels: of the machine, which the metadata name.
    """
    config, graph = plan.config, plan.folded.graph
    low, high = (
        bit_plan(
            graph,
            config.model_copy(
                update={"weight_bits": bits, "activation_bits": None if config.activation_bits is None else bits}
            ),
        )
        for bits in (MIN_BITS, MAX_BITS)
    )
    layers, _ = free_tensors(low, high)
    three = bit_plan(graph, config.model_copy(update={"weight_bits": MIN_BITS + 1, "activation_bits": MIN_BITS + 1}))
    sites: set[str] = set()
    if config.target_bitops is not None and config.activation_bits is not None:
        sites = {site.name for site in free_tensors(low, three)[1] if site.bits == MIN_BITS}
    largest = replace(  # a symmetric grid is said in fewer letters: it counts where every width has it
        plan.bits,
        weights={name: MAX_BITS if name in layers else bits for name, bits in plan.bits.weights.items()},
        symmetric_weights=low.symmetric_weights & high.symmetric_weights,
    )
    arithmetic = Arithmetic(dtype=LONGEST_ARITHMETIC, kernels=kernels, deterministic=False)
    size = folder_size(replace(plan, bits=largest), images, arithmetic)
    blank = dict.fromkeys(config.own_widths, 0.0)
    return Problem(
        plan.bits,
        {name: dict(blank) for name in plan.bits.weights if name in layers},
        {site.name: dict(blank) for site in plan.bits.activations if site.name in sites},
        size,
        layer_operations(graph, plan.bits),
        budget_of(config, graph, size.num_bytes(plan.bits.weights)),
    )


def choose(problem: Problem, weights: Costs, activations: Costs) -> Choice:
    """The bits of least cost within the budget.

    Args:
        problem: the choice.
        weights: layer -> bits -> cost, of more layers and widths perhaps than are free.
        activations: the same of sites.

    Raises:
        InputError: a layer or site without costs.
        UsageError: as `solve`.
    """
    found = [
        {
            name: _falling({width: costs[name][width] for width in free[name]})
            for name, costs in ((name, costs_of(given, free, what)) for name in free)
        }
        for given, free, what in (
            (weights, problem.weights, "layer"),
            (activations, problem.activations, "activation site"),
        )
    ]
    problem = replace(problem, weights=found[0], activations=found[1])
    return Choice(problem, solve(problem))


def _falling(costs: dict[int, float]) -> dict[int, float]:
    """The same costs where none is below that of a larger width, as noise of an estimate may have it."""
    fallen, largest = {}, 0.0
    for width in sorted(costs, reverse=True):
        largest = max(largest, costs[width])
        fallen[width] = largest
    return dict(sorted(fallen.items()))


def chosen_plan(plan: QuantizationPlan, bits: BitPlan, device: torch.device) -> QuantizationPlan:
    """The plan of the same recipe with other bits, which its configuration holds as a table."""
    config = plan.config.model_copy(update={"bits_table": table_of(bits)})
    return make_plan(plan.teacher, config, device)
