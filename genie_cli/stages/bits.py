"""The search for bits before a quantization, and the repair round after it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genie_cli.artifacts.images import ImageSet
from genie_cli.models.graph.placement import move
from genie_cli.quantization.activations.passing import ImageRows
from genie_cli.quantization.bits.candidates import make_candidates
from genie_cli.quantization.bits.choose import Choice, choose, chosen_plan, make_problem
from genie_cli.quantization.bits.distance import OutputDistance
from genie_cli.quantization.bits.estimate import estimated_costs
from genie_cli.quantization.bits.repair import (
    compared_units,
    learned_distance,
    repaired_bits,
    unchanged_parts,
    unit_sites,
)
from genie_cli.quantization.bits.search import check_budget
from genie_cli.quantization.bits.sensitivity import Costs, read_sensitivities
from genie_cli.quantization.plan import QuantizationPlan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.quantization.result import QuantizedNetwork
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.device import kernel_kind
from genie_cli.runtime.progress import Note
from genie_cli.runtime.work import NO_WORK, SecondRound
from genie_cli.sizes import file_size
from genie_cli.stages.run import Run

SEARCH_IMAGES = 128
"""The most images that costs are estimated on, those of all processes together."""


@dataclass(frozen=True)
class Search:
    """A search that is done.

    Attributes:
        plan: with the bits that were found.
        choice: what they were chosen from.
        costs: of weights and activations.
        images: those that the costs are of, this process's share.
        distance: of the outputs.
    """

    plan: QuantizationPlan
    choice: Choice
    costs: tuple[Costs, Costs]
    images: Tensor
    distance: OutputDistance

    def described(self) -> str:
        """The network that was found, in words."""
        widths = sorted(set(self.choice.bits.weights.values()))
        shown = f"{widths[0]} to {widths[-1]}" if len(widths) > 1 else str(widths[0])
        return (
            f"weights of {shown} bits, at most {file_size(self.choice.num_bytes)}, "
            f"{self.choice.num_bitops:.4g} bit operations per image"
        )


def searched(run: Run, plan: QuantizationPlan, inputs: ImageRows, images: ImageSet) -> Search:
    """The bits within the recipe's budget.

    Args:
        run: what to run on.
        plan: of the uniform network.
        inputs: the calibration images, normalised; with several processes, this one's share.
        images: the set that they are of.

    Raises:
        UsageError: a budget below the smallest network, nothing to choose, or SciPy is not installed.
        InputError: sensitivities of another network.
    """
    config = plan.config
    with run.checks():
        problem = make_problem(plan, images, kernel_kind(run.device))
        note = check_budget(problem)
        stored = None if config.sensitivity is None else read_sensitivities(config.sensitivity, plan.teacher)
    if note is not None:
        run.note(note)
    shown = inputs[0 : max(1, SEARCH_IMAGES // run.workers.size)]
    run.use_float32("costs are compared, not learned")
    with run.working(NO_WORK) as context:
        graph = move(plan.folded.graph, context.device)
        candidates = make_candidates(plan, shown, context)
        if stored is None:
            costs = estimated_costs(candidates, shown, config.seed, context)
        else:
            costs = stored.weights, stored.activations
        move(graph, torch.device("cpu"))
    with run.checks():
        choice = choose(problem, *costs)
    search = Search(chosen_plan(plan, choice.bits, run.device), choice, costs, shown, candidates.distance)
    run.note(f"bits found: {search.described()}.")
    return search


def repaired(network: QuantizedNetwork, search: Search, inputs: ImageRows, context: RunContext) -> QuantizedNetwork:
    """The network after the repair round: the learned one, or one with other bits that comes nearer to the teacher.

    Args:
        network: as it was learned with the bits that were found.
        search: how these were found.
        inputs: what it was learned on.
        context: what to run on.
    """
    measure = (search.distance, search.images)
    compared = compared_units(network, search.costs, measure, context)
    bits = repaired_bits(search.choice, network.plan, compared)
    off = [cost.unit for cost in compared if cost.is_far_off]
    if bits is None:
        _note(context, f"repair round: {_units(off)} the estimate, and the bits stay.")
        return network
    plan = chosen_plan(network.plan, bits, context.device)
    same = unchanged_parts(plan.units, unit_sites(plan), network.plan.bits, bits)
    work = SecondRound(context.work, lambda name: _unit_number(name) < same)
    _note(context, f"repair round: {_units(off)} the estimate; learning again with other bits from unit {same + 1} on.")
    again = quantize_network(plan, inputs, replace(context, work=work))
    before, after = (_distance(each, measure, context) for each in (network, again))
    kept = "the second network" if after < before else "the first network"
    _note(
        context,
        f"repair round: {kept} is kept, at {min(before, after):.4g} from the teacher, not {max(before, after):.4g}.",
    )
    return again if after < before else network


def _distance(network: QuantizedNetwork, measure: tuple[OutputDistance, ImageRows], context: RunContext) -> float:
    sites = [site.name for site in network.plan.bits.activations]
    return learned_distance(network, list(network.weights), sites, measure, context)


def _unit_number(part: str) -> int:
    """The unit that a part is of: ``unit3``, ``unit3.1`` or ``unit3.float32``."""
    return int(part.removeprefix("unit").partition(".")[0])


def _units(names: list[str]) -> str:
    return f"{', '.join(names)} came out far off" if names else "no unit came out far off"


def _note(context: RunContext, message: str) -> None:
    if context.workers.is_first:
        context.report(Note(message))
