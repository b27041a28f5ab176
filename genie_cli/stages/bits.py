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
from genie_cli.runtime.work import NO_WORK, PartsInMemory, SecondRound, Work
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


def learned_in_rounds(search: Search, inputs: ImageRows, context: RunContext) -> QuantizedNetwork:
    """A network with the bits that were found, or those of the repair round where these come nearer to the teacher.

    Units are learned in both rounds. Where the recipe fine-tunes the network, this comes once, behind them.

    Args:
        search: how the bits were found.
        inputs: what the network is learned on.
        context: what to run on.
    """
    work = context.work if context.work is not NO_WORK else PartsInMemory()
    context = replace(context, work=work)
    first = quantize_network(replace(search.plan, finetuned=None), inputs, context)
    network, work = _second_round(first, search, inputs, context)
    if search.plan.finetuned is None:
        return network
    plan = chosen_plan(search.plan, network.plan.bits, context.device)
    return quantize_network(plan, inputs, replace(context, work=work))


def _second_round(
    first: QuantizedNetwork, search: Search, inputs: ImageRows, context: RunContext
) -> tuple[QuantizedNetwork, Work]:
    """The better network of both rounds, with the work that holds its units."""
    measure = (search.distance, search.images)
    compared = compared_units(first, search.costs, measure, context)
    bits = repaired_bits(search.choice, first.plan, compared)
    off = _units([cost.unit for cost in compared if cost.is_far_off])
    if bits is None:
        _note(context, f"repair round: {off} the estimate, and the bits stay.")
        return first, context.work
    plan = replace(chosen_plan(search.plan, bits, context.device), finetuned=None)
    same = unchanged_parts(plan.units, unit_sites(plan), first.plan.bits, bits)
    work = SecondRound(context.work, lambda name: _is_before(name, same))
    _note(context, f"repair round: {off} the estimate; learning again with other bits from unit {same + 1} on.")
    second = quantize_network(plan, inputs, replace(context, work=work))
    distances = [_distance(each, measure, context) for each in (first, second)]
    is_better = distances[1] < distances[0]
    _note(
        context,
        f"repair round: the {'second' if is_better else 'first'} network is kept, at {min(distances):.4g} from the "
        f"teacher, not {max(distances):.4g}.",
    )
    return (second, work) if is_better else (first, context.work)


def _distance(network: QuantizedNetwork, measure: tuple[OutputDistance, ImageRows], context: RunContext) -> float:
    sites = [site.name for site in network.plan.bits.activations]
    return learned_distance(network, list(network.weights), sites, measure, context)


def _is_before(part: str, unit: int) -> bool:
    """True for a part (``unit3``, ``unit3.1``, ``unit3.float32``) of a unit before the one at this place."""
    number = part.removeprefix("unit").partition(".")[0]
    return part.startswith("unit") and number.isdigit() and int(number) < unit


def _units(names: list[str]) -> str:
    return f"{', '.join(names)} came out far off" if names else "no unit came out far off"


def _note(context: RunContext, message: str) -> None:
    if context.workers.is_first:
        context.report(Note(message))
