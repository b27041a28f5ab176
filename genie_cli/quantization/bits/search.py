"""The choice of bits: the least sum of costs within a budget, as an integer program.

A binary variable per tensor and width says that the tensor has the width; each tensor has one. Costs of tensors add up,
as changes that are small and independent do. Bytes are linear in the widths of the weights. Bit operations are
products: a variable per layer and pair of widths, whose sums over each side are the variables of weight and
activation. A tensor that several layers read has one quantizer, and so one set of variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from genie_cli.config.bit_table import BitTable
from genie_cli.errors import UsageError
from genie_cli.quantization.bits.budget import Budget
from genie_cli.quantization.bits.operations import LayerOperations, num_bitops
from genie_cli.quantization.bits.sensitivity import Costs
from genie_cli.quantization.bits.size import FolderSize
from genie_cli.runtime.extras import required
from genie_cli.sizes import file_size
from genie_cli.student.bit_plan import ActivationSite, BitPlan

_GAP = 1e-4
"""Relative distance from the best sum of costs at which the search may end."""
_SCALE = 1e3
"""The sum of the largest costs, as the solver sees it: its tolerances are absolute."""


@dataclass(frozen=True)
class Problem:
    """A choice of bits.

    Attributes:
        bits: of all layers and sites; those that are not free keep theirs.
        weights: free layer -> width -> cost, for the widths that it may have.
        activations: the same of free sites.
        size: bytes as a function of the weights' bits.
        operations: products of each layer.
        budget: what the network may take.
    """

    bits: BitPlan
    weights: Costs
    activations: Costs
    size: FolderSize
    operations: Mapping[str, LayerOperations]
    budget: Budget

    def all_at(self, place: int) -> BitPlan:
        """The network whose free tensors have their smallest (0) or largest (-1) width."""
        return self.with_bits(
            {name: sorted(costs)[place] for name, costs in self.weights.items()},
            {name: sorted(costs)[place] for name, costs in self.activations.items()},
        )

    def with_bits(self, weights: Mapping[str, int], activations: Mapping[str, int]) -> BitPlan:
        """The network with these bits of free layers and sites."""
        sites = (replace(site, bits=activations.get(site.name, site.bits)) for site in self.bits.activations)
        return replace(self.bits, weights={**self.bits.weights, **weights}, activations=tuple(sites))

    def fits(self, bits: BitPlan) -> bool:
        """True if a network is within the budget."""
        return (self.budget.num_bytes is None or self.size.num_bytes(bits.weights) <= self.budget.num_bytes) and (
            self.budget.num_bitops is None or num_bitops(self.operations, bits) <= self.budget.num_bitops
        )

    def cost(self, bits: BitPlan) -> float:
        """The sum of the costs of free layers and sites."""
        sites = {site.name: site.bits for site in bits.activations}
        return sum(costs[bits.weights[name]] for name, costs in self.weights.items()) + sum(
            costs[sites[name]] for name, costs in self.activations.items()
        )

    def near(self, bits: BitPlan, factors: Mapping[str, float]) -> Problem:
        """The choice among widths next to those of `bits`, with corrected costs.

        Args:
            bits: a solution.
            factors: layer or site -> factor of its costs; 1 where there is none.
        """
        sites = {site.name: site.bits for site in bits.activations}
        return replace(
            self,
            weights={
                name: _near(costs, bits.weights[name], factors.get(name, 1)) for name, costs in self.weights.items()
            },
            activations={
                name: _near(costs, sites[name], factors.get(name, 1)) for name, costs in self.activations.items()
            },
        )


def _near(costs: Mapping[int, float], chosen: int, factor: float) -> dict[int, float]:
    widths = sorted(costs)
    place = widths.index(chosen)
    return {width: factor * costs[width] for width in widths[max(0, place - 1) : place + 2]}


def table_of(bits: BitPlan) -> BitTable:
    """The bits of all layers and sites as a table."""
    return BitTable(weights=bits.weights, activations={site.name: site.bits for site in bits.activations})


def check_budget(problem: Problem) -> str | None:
    """A note where the budget is above the largest network; None: it is not.

    Raises:
        UsageError: it is below the smallest network, whose size is said; or nothing is free to choose.
    """
    if not problem.weights and not problem.activations:
        raise UsageError(
            "No layer is free to choose bits for: the protocol and --bits-override say those of all. Use another "
            "--protocol such as ait, or leave the target out."
        )
    notes = []
    for wanted, option, measure, shown in (
        (
            problem.budget.num_bytes,
            problem.budget.size_option,
            lambda bits: problem.size.num_bytes(bits.weights),
            _size,
        ),
        (problem.budget.num_bitops, "--target-bitops", lambda bits: num_bitops(problem.operations, bits), _count),
    ):
        if wanted is None:
            continue
        least, most = (problem.all_at(place) for place in (0, -1))
        if wanted < measure(least):
            raise UsageError(
                f"{option}: {shown(wanted)} is below the smallest network that there is, {shown(measure(least))} with "
                f"{_widths(least, problem)} wherever protocol and overrides leave the choice: raise it"
                f"{'' if min(_free(least, problem)) == 2 else ', or allow fewer bits with --bits'}."
            )
        if wanted >= measure(most):
            notes.append(
                f"{option}: {shown(wanted)} is above the largest network, {shown(measure(most))} with "
                f"{_widths(most, problem)} everywhere, which is what is made."
            )
    return " ".join(notes) or None


def _free(bits: BitPlan, problem: Problem) -> set[int]:
    sites = {site.name: site.bits for site in bits.activations}
    return {bits.weights[name] for name in problem.weights} | {sites[name] for name in problem.activations}


def _widths(bits: BitPlan, problem: Problem) -> str:
    return " and ".join(f"{width} bits" for width in sorted(_free(bits, problem)))


def _size(num_bytes: int) -> str:
    return f"{num_bytes} bytes ({file_size(num_bytes)})" if num_bytes >= 1000 else f"{num_bytes} bytes"


def _count(number: int) -> str:
    return f"{number:.4g} bit operations"


def solve(problem: Problem) -> BitPlan:
    """The bits of least cost within the budget.

    Raises:
        UsageError: SciPy is not installed, or as `check_budget`.
    """
    check_budget(problem)
    largest = problem.all_at(-1)
    if problem.fits(largest):
        return largest
    margin = 0.0
    while True:
        chosen = _solved(problem, margin)
        if problem.fits(chosen):
            return chosen
        margin += 1e-6  # the solver keeps a constraint up to a relative tolerance


@dataclass
class _Program:
    """An integer program as it is built.

    Attributes:
        costs: of each variable.
        is_integer: 1 for a binary variable, 0 for one that follows from others.
        rows: constraints: coefficients by variable, lower and upper bound.
    """

    costs: list[float] = field(default_factory=list)
    is_integer: list[int] = field(default_factory=list)
    rows: list[tuple[dict[int, float], float, float]] = field(default_factory=list)

    def add(self, cost: float, is_integer: bool) -> int:
        """A variable from 0 to 1; its place."""
        self.costs.append(cost)
        self.is_integer.append(int(is_integer))
        return len(self.costs) - 1

    def choice(self, costs: Mapping[int, float]) -> dict[int, int]:
        """Width -> variable, of which one is 1."""
        variables = {width: self.add(cost, True) for width, cost in costs.items()}
        self.rows.append((dict.fromkeys(variables.values(), 1.0), 1.0, 1.0))
        return variables

    def solved(self) -> Any:
        """The values of the variables."""
        milp, bounds, linear, sparse = _scipy()
        entries = [(row, column, value) for row, (each, _, _) in enumerate(self.rows) for column, value in each.items()]
        rows, columns, values = zip(*entries, strict=True)
        matrix = sparse.csr_array((values, (rows, columns)), shape=(len(self.rows), len(self.costs)))
        lower, upper = ([row[end] for row in self.rows] for end in (1, 2))
        return milp(
            self.costs,
            integrality=self.is_integer,
            bounds=bounds(0, 1),
            constraints=linear(matrix, lower, upper),
            options={"mip_rel_gap": _GAP},
        )


def _solved(problem: Problem, margin: float) -> BitPlan:
    program = _Program()
    total = sum(max(each.values()) for each in (*problem.weights.values(), *problem.activations.values()))
    factor = _SCALE / total if total > 0 else 1.0
    weights, activations = (
        {name: program.choice({width: factor * cost for width, cost in each.items()}) for name, each in costs.items()}
        for costs in (problem.weights, problem.activations)
    )
    if problem.budget.num_bytes is not None:
        kept = {name: bits for name, bits in problem.bits.weights.items() if name not in weights}
        left = problem.budget.num_bytes * (1 - margin) - problem.size.num_bytes(kept)
        bytes_of = {
            variable: float(problem.size.layer_bytes(name, width))
            for name, variables in weights.items()
            for width, variable in variables.items()
        }
        _add_budget(program, bytes_of, left)
    if problem.budget.num_bitops is not None:
        _add_budget(program, *_bitops_row(program, problem, weights, activations, margin))
    found = program.solved()
    if found.x is None:
        raise UsageError(
            f"No bits within the budget were found: {found.message} Raise the target, or allow more widths (--bits)."
        )
    chosen = [
        {name: max(variables, key=lambda width: found.x[variables[width]]) for name, variables in each.items()}
        for each in (weights, activations)
    ]
    return problem.with_bits(*chosen)


def _add_budget(program: _Program, coefficients: Mapping[int, float], left: float) -> None:
    """A sum of at most `left`; in units of it, so that the solver's tolerance is relative."""
    unit = max(left, 1.0)
    program.rows.append(({place: value / unit for place, value in coefficients.items()}, 0.0, left / unit))


def _bitops_row(
    program: _Program,
    problem: Problem,
    weights: Mapping[str, Mapping[int, int]],
    activations: Mapping[str, Mapping[int, int]],
    margin: float,
) -> tuple[dict[int, float], float]:
    """Bit operations as a sum over variables, and how many the free ones may have."""
    assert problem.budget.num_bitops is not None
    sites = {site.name: site.bits for site in problem.bits.activations}
    left, row = problem.budget.num_bitops * (1 - margin), dict[int, float]()
    for name, each in problem.operations.items():
        count, site = each.multiplications, each.site
        widths, inputs = weights.get(name), activations.get(site) if site is not None else None
        if widths is None and inputs is None:
            left -= each.bitops(problem.bits.weights[name], sites)
        elif inputs is None:
            assert widths is not None
            for width, variable in widths.items():
                row[variable] = row.get(variable, 0) + each.bitops(width, sites)
        elif widths is None:
            for width, variable in inputs.items():
                row[variable] = row.get(variable, 0) + count * problem.bits.weights[name] * width
        else:
            pairs = {(own, read): program.add(0.0, False) for own in widths for read in inputs}
            for own, variable in widths.items():
                program.rows.append(({**{pairs[own, read]: 1.0 for read in inputs}, variable: -1.0}, 0.0, 0.0))
            for read, variable in inputs.items():
                program.rows.append(({**{pairs[own, read]: 1.0 for own in widths}, variable: -1.0}, 0.0, 0.0))
            row |= {pair: float(count * own * read) for (own, read), pair in pairs.items()}
    return row, left


def _scipy() -> tuple[Any, Any, Any, Any]:
    """The parts of SciPy that are used.

    Raises:
        UsageError: it is not installed.
    """
    optimize = required("scipy.optimize", "Finding the bits within a budget")
    return optimize.milp, optimize.Bounds, optimize.LinearConstraint, required("scipy.sparse")


def free_tensors(bits: BitPlan, other: BitPlan) -> tuple[set[str], tuple[ActivationSite, ...]]:
    """The layers and sites whose bits follow the target's: those that differ between plans of two targets."""
    elsewhere = {site.name: site.bits for site in other.activations}
    layers = {name for name, number in bits.weights.items() if other.weights[name] != number}
    return layers, tuple(site for site in bits.activations if elsewhere.get(site.name) not in (None, site.bits))
