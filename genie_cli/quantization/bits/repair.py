"""The repair round: bits give way where learning came out otherwise than the estimate.

Sensitivities are of weights that are rounded to the nearest codes. Learning makes most units' costs smaller, some by
more than others. When a network is learned, each unit's cost is what it adds to the distance of the outputs where the
units before it are quantized and those behind it are in float: a unit that makes up for errors before it is no worse
for that. The cost is set beside the sum of its tensors' costs. A unit whose ratio is more than `FAR_OFF` times the
median of all units, or less than its inverse, has its costs corrected by that factor, by no more than `MOST`, and the
bits are chosen again among the widths next to the chosen ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.outputs import as_tuple
from genie_cli.models.graph.placement import move
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.quantization.activations.passing import ImageRows
from genie_cli.quantization.bits.choose import Choice
from genie_cli.quantization.bits.distance import OutputDistance
from genie_cli.quantization.bits.search import solve
from genie_cli.quantization.bits.sensitivity import Costs
from genie_cli.quantization.plan import QuantizationPlan
from genie_cli.quantization.result import QuantizedNetwork
from genie_cli.quantization.units.partition import Unit
from genie_cli.quantization.units.unit_graph import rows_at_once
from genie_cli.runtime.context import RunContext
from genie_cli.student.bit_plan import BitPlan
from genie_cli.student.build import insert_quantizers
from genie_cli.student.modules import FloatWeight

FAR_OFF = 1.5
"""Factor from the median ratio at which a unit counts as far off the estimate."""
MOST = 4.0
"""The largest factor by which costs are corrected, and the inverse of the smallest."""


@dataclass(frozen=True)
class UnitCost:
    """A learned unit beside its estimate.

    Attributes:
        unit: its name.
        learned: distance that the unit adds, as it was learned; below 0 where it makes up for earlier ones.
        estimated: sum of the costs of its tensors.
        factor: the ratio of both over the median ratio of all units, at most `MOST` and at least its inverse.
    """

    unit: str
    learned: float
    estimated: float
    factor: float

    @property
    def is_far_off(self) -> bool:
        """True if its costs are corrected."""
        return not 1 / FAR_OFF <= self.factor <= FAR_OFF


def unit_sites(plan: QuantizationPlan) -> list[list[str]]:
    """For each unit the sites that it is the first to read, or makes where no node reads them."""
    index = {node: place for place, node in enumerate(data_nodes(plan.folded.graph))}
    nodes = {node.name: node for node in index}
    found: list[list[str]] = [[] for _ in plan.units]
    for site in plan.bits.activations:
        node = nodes[site.node]
        readers = [reader for reader in node.users if reader in index]
        owner = min(readers, key=index.__getitem__) if readers else node
        for own, unit in zip(found, plan.units, strict=True):
            if owner in unit.nodes:
                own.append(site.name)
    return found


@torch.no_grad()
def learned_distance(
    network: QuantizedNetwork,
    layers: Sequence[str],
    sites: Sequence[str],
    measure: tuple[OutputDistance, ImageRows],
    context: RunContext,
) -> float:
    """Distance per image of the outputs where some layers and sites are quantized as they were learned.

    Args:
        network: the learned network.
        layers: those whose weights are integers.
        sites: those whose quantizers round.
        measure: the distance, and the images; with several processes, this one's share.
        context: what to run on.
    """
    plan, (distance, images), device = network.plan, measure, context.device
    graph = plan.folded.graph
    weights: dict[str, nn.Module] = {
        layer.name: network.weights[layer.name]
        if layer.name in layers
        else FloatWeight(get_tensor(graph, layer.weight_key))
        for layer in weight_layers(graph)
    }
    weights |= plan.slopes  # they have their integers, whatever the bits
    activations: dict[str, nn.Module] = {
        site.name: network.activations[site.name] if site.name in sites else nn.Identity()
        for site in plan.bits.activations
    }
    student = move(insert_quantizers(graph, plan.bits, weights, activations), device)
    teacher = move(plan.teacher.graph, device)
    total = torch.zeros(2, dtype=torch.float64)
    rows = rows_at_once(data_nodes(graph), device)
    for first in range(0, len(images), rows):
        batch = images[first : first + rows].to(device)
        total += torch.tensor([distance(as_tuple(student(batch)), as_tuple(teacher(batch))), len(batch)])
    for module in (student, teacher):
        move(module, torch.device("cpu"))
    context.workers.sum_(total)
    return float(total[0] / total[1])


def compared_units(
    network: QuantizedNetwork,
    costs: tuple[Costs, Costs],
    measure: tuple[OutputDistance, ImageRows],
    context: RunContext,
) -> list[UnitCost]:
    """Each unit as it was learned beside its estimate, front to back.

    Args:
        network: the learned network.
        costs: of the weights, and of the activations.
        measure: the distance, and the images; with several processes, this one's share.
        context: what to run on.
    """
    plan = network.plan
    bits = {site.name: site.bits for site in plan.bits.activations}
    pairs, layers_before, sites_before, before = [], list[str](), list[str](), 0.0
    for unit, sites in zip(plan.units, unit_sites(plan), strict=True):
        layers_before += unit.layers
        sites_before += sites
        distance = learned_distance(network, layers_before, sites_before, measure, context)
        estimated = sum(costs[0][name][plan.bits.weights[name]] for name in unit.layers)
        estimated += sum(costs[1].get(name, {}).get(bits[name], 0.0) for name in sites)
        pairs.append((unit.name, distance - before, estimated))
        before = distance
    middle = median(learned / estimated for _, learned, estimated in pairs) if all(pair[2] > 0 for pair in pairs) else 0
    return [UnitCost(*pair, _factor(*pair[1:], middle)) for pair in pairs]


def _factor(learned: float, estimated: float, middle: float) -> float:
    return min(MOST, max(1 / MOST, learned / estimated / middle)) if middle > 0 else 1.0


def repaired_bits(choice: Choice, plan: QuantizationPlan, compared: Sequence[UnitCost]) -> BitPlan | None:
    """The bits after the correction; None: they stay.

    Args:
        choice: the bits that were learned, and what they were chosen from.
        plan: the units.
        compared: each of them beside its estimate.
    """
    factors: dict[str, float] = {}
    for unit, sites, cost in zip(plan.units, unit_sites(plan), compared, strict=True):
        if cost.is_far_off:
            factors.update(dict.fromkeys((*unit.layers, *sites), cost.factor))
    if not factors:
        return None
    bits = solve(choice.problem.near(choice.bits, factors))
    return None if bits == choice.bits else bits


def unchanged_parts(units: Sequence[Unit], sites: Sequence[Sequence[str]], first: BitPlan, second: BitPlan) -> int:
    """Number of units, from the front, whose bits are the same in both plans: they are learned the same."""
    activations: list[Mapping[str, int]] = [
        {site.name: site.bits for site in plan.activations} for plan in (first, second)
    ]
    for number, (unit, own) in enumerate(zip(units, sites, strict=True)):
        same = all(first.weights[name] == second.weights[name] for name in unit.layers)
        if not same or any(activations[0][name] != activations[1][name] for name in own):
            return number
    return len(units)
