"""The choice of bits against all choices that there are."""

from __future__ import annotations

import itertools
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genie_cli.errors import UsageError
from genie_cli.quantization.bits.budget import Budget
from genie_cli.quantization.bits.operations import LayerOperations, num_bitops
from genie_cli.quantization.bits.search import Problem, check_budget, solve, table_of
from genie_cli.quantization.bits.size import FolderSize
from genie_cli.student.bit_plan import ActivationSite, BitPlan

LAYERS = ("first", "second", "third", "kept")
SITES = ("second.input", "kept.input")
WIDTHS = (2, 4, 8)
BITS = BitPlan(
    {"first": 4, "second": 4, "third": 4, "kept": 8},
    (ActivationSite("second.input", "a", 4), ActivationSite("kept.input", "b", 4)),
)
OPERATIONS = {
    "first": LayerOperations(300, None, 8),
    "second": LayerOperations(500, "second.input", 32),
    "third": LayerOperations(200, "second.input", 32),  # the same tensor
    "kept": LayerOperations(50, "kept.input", 32),
}
SIZE = FolderSize(100, {"first": 27, "second": 400, "third": 155, "kept": 10})


def problem(costs: list[float], budget: Budget, searches_sites: bool = True) -> Problem:
    numbers = iter([cost for start in range(0, 15, 3) for cost in sorted(costs[start : start + 3], reverse=True)])
    weights = {name: {width: next(numbers) for width in WIDTHS} for name in LAYERS[:3]}
    sites = {name: {width: next(numbers) for width in WIDTHS} for name in SITES} if searches_sites else {}
    return Problem(BITS, weights, sites, SIZE, OPERATIONS, budget)


def all_choices(asked: Problem) -> list[BitPlan]:
    return [
        asked.with_bits(
            dict(zip(asked.weights, widths, strict=False)),
            dict(zip(asked.activations, widths[len(asked.weights) :], strict=True)),
        )
        for widths in itertools.product(WIDTHS, repeat=len(asked.weights) + len(asked.activations))
    ]


def fits(asked: Problem, bits: BitPlan) -> bool:
    return (asked.budget.num_bytes is None or SIZE.num_bytes(bits.weights) <= asked.budget.num_bytes) and (
        asked.budget.num_bitops is None or num_bitops(OPERATIONS, bits) <= asked.budget.num_bitops
    )


@settings(max_examples=40, deadline=None)
@given(
    costs=st.lists(st.floats(1e-6, 1), min_size=15, max_size=15),
    share=st.floats(0, 1),
    kind=st.sampled_from(["bytes", "bitops", "both"]),
)
def test_the_best_of_all_choices_is_found(costs: list[float], share: float, kind: str) -> None:
    open_budget = problem(costs, Budget(None, None))
    least, most = open_budget.all_at(0), open_budget.all_at(-1)
    ends = {"bytes": [SIZE.num_bytes(each.weights) for each in (least, most)],
            "bitops": [num_bitops(OPERATIONS, each) for each in (least, most)]}  # fmt: skip
    limits = {name: low + round(share * (high - low)) for name, (low, high) in ends.items()}
    budget = Budget(*(limits[name] if kind in (name, "both") else None for name in ("bytes", "bitops")))
    asked = problem(costs, budget)
    found = solve(asked)
    best = min(asked.cost(bits) for bits in all_choices(asked) if fits(asked, bits))
    assert fits(asked, found)
    assert asked.cost(found) <= best * (1 + 2e-4) + 1e-8
    assert found.weights["kept"] == 8


def test_a_tensor_that_two_layers_read_has_one_entry() -> None:
    table = table_of(solve(problem([0.5] * 15, Budget(None, 10**9))))
    assert list(table.activations) == list(SITES) and list(table.weights) == list(LAYERS)


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        (
            Budget(10, None),
            r"--target-size: 10 bytes is below the smallest network that there is, 256 bytes with 2 bits",
        ),
        (Budget(10, None, "--target-ratio"), "--target-ratio: 10 bytes is below"),
        (Budget(None, 5), r"--target-bitops: 5 bit operations is below the smallest network .* 8400 bit operations"),
    ],
)
def test_budgets_below_the_smallest_network(budget: Budget, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        solve(problem([0.5] * 15, budget))


def test_the_smallest_that_is_said_is_found() -> None:
    assert set(solve(problem([0.5] * 15, Budget(256, None), False)).weights.values()) == {2, 8}


def test_budgets_above_the_largest_are_told_and_give_the_largest() -> None:
    asked = problem([0.5, 0.2, 0.1] * 5, Budget(10**6, None))
    assert "above the largest network, 692 bytes with 8 bits everywhere" in str(check_budget(asked))
    assert set(solve(asked).weights.values()) == {8}
    assert check_budget(problem([0.5] * 15, Budget(691, None))) is None


def test_nothing_to_choose() -> None:
    with pytest.raises(UsageError, match="No layer is free to choose bits for"):
        check_budget(Problem(BITS, {}, {}, SIZE, OPERATIONS, Budget(500, None)))


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(UsageError, match=r"pip install 'genie-cli\[search\]'"):
        solve(problem([0.5] * 15, Budget(500, None)))


def test_corrected_costs_and_neighbouring_widths() -> None:
    asked = problem([1.0, 0.5, 0.25] * 5, Budget(10**6, None))
    near = asked.near(asked.all_at(0), {"second": 3.0, "kept.input": 0.5})
    assert near.weights["first"] == {2: 1.0, 4: 0.5} and near.weights["second"] == {2: 3.0, 4: 1.5}
    assert near.activations["kept.input"] == {2: 0.5, 4: 0.25}
