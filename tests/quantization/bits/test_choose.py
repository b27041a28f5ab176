"""Bits within a budget, from costs to the folder on the disk; the repair of bits."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genie_cli.artifacts.metadata import FOLDER_FILES
from genie_cli.config import ModelConfig, QuantizeConfig
from genie_cli.config.bit_table import BitTable
from genie_cli.models.graph.tensors import named_tensors
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_teacher
from genie_cli.quantization.bits.choose import Choice, choose, chosen_plan, make_problem
from genie_cli.quantization.bits.repair import UnitCost, repaired_bits, unchanged_parts, unit_sites
from genie_cli.quantization.bits.search import Problem, table_of
from genie_cli.quantization.bits.sensitivity import Costs
from genie_cli.quantization.plan import QuantizationPlan
from genie_cli.quantization.quantize import quantize_network
from tests.support import ARITHMETIC, CPU
from tests.support.stages import plan_of, run_context
from tests.support.students import save_student

SMALLEST, LARGEST = 37_000, 70_000
"""Bytes between which the digits network has sizes, under each protocol."""


@functools.cache
def digits() -> Teacher:
    return load_teacher(ModelConfig(name="digits_resnet"))


def planned(**recipe: Any) -> QuantizationPlan:
    return plan_of(digits(), QuantizeConfig(**{"protocol": "ait", "reconstruct": False, **recipe}))


def problem_of(plan: QuantizationPlan) -> Problem:
    return make_problem(plan, None, ARITHMETIC.kernels)


def costs(problem: Problem, seed: int = 0) -> tuple[Costs, Costs]:
    """Costs of all tensors that fall by a factor with each bit."""
    generator = torch.Generator().manual_seed(seed)
    sites = [site.name for site in problem.bits.activations]
    scales = torch.rand(len(problem.bits.weights) + len(sites), generator=generator).tolist()
    found = {
        name: {bits: scale * 3.0**-bits for bits in range(2, 9)}
        for name, scale in zip([*problem.bits.weights, *sites], scales, strict=True)
    }
    return {name: found[name] for name in problem.bits.weights}, {name: found[name] for name in sites}


def chosen(plan: QuantizationPlan, seed: int = 0) -> Choice:
    problem = problem_of(plan)
    return choose(problem, *costs(problem, seed))


@settings(max_examples=6, deadline=None)
@given(
    budget=st.integers(SMALLEST, LARGEST),
    protocol=st.sampled_from(["ait", "genie", "integer"]),
    learned=st.booleans(),
    seed=st.integers(0, 100),
)
def test_size_on_disk_is_at_most_the_budget(
    tmp_path_factory: pytest.TempPathFactory, budget: int, protocol: str, learned: bool, seed: int
) -> None:
    recipe = {"reconstruct": True, "num_steps": 2, "batch_size": 4, "patience": 2} if learned else {}
    plan = planned(target_size=budget + 5_000, protocol=protocol, **recipe)
    plan = chosen_plan(plan, chosen(plan, seed).bits, CPU)
    images = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    folder = tmp_path_factory.mktemp("target") / "quantized"
    save_student(quantize_network(plan, images, run_context()), digits(), folder)
    assert sum((folder / name).stat().st_size for name in FOLDER_FILES) <= budget + 5_000


def test_the_target_uniform_is_the_size_at_the_recipe_s_bits() -> None:
    problem = problem_of(planned(target_size="uniform", weight_bits=3))
    assert problem.budget.num_bytes == problem.size.num_bytes(dict.fromkeys(problem.bits.weights, 3))


def test_a_ratio_is_of_the_folded_network_in_float32() -> None:
    plan = planned(target_ratio=0.25)
    numel = sum(value.numel() for value in named_tensors(plan.folded.graph).values() if value.is_floating_point())
    budget = problem_of(plan).budget
    assert (budget.num_bytes, budget.size_option) == (numel, "--target-ratio")


def test_what_protocol_and_patterns_say_is_not_free() -> None:
    plan = planned(target_bitops=10**8, protocol="genie", bits_override={"layer1.0.conv1": (7, 6)}, widths=(3, 2))
    problem = problem_of(plan)
    fixed = set(plan.bits.weights) - set(problem.weights)
    assert fixed == {"conv1", "fc", "layer1.0.conv1"}
    assert {tuple(each) for each in problem.weights.values()} == {(2, 3)}
    sites = {site.name for site in plan.bits.activations}
    assert sites - set(problem.activations) == {"layer1.0.conv1.input", "fc.input"}
    found = table_of(chosen(plan).bits)
    assert {found.weights[name] for name in ("conv1", "fc")} == {8} and found.weights["layer1.0.conv1"] == 7


def test_activations_are_free_where_bit_operations_are_bounded_and_quantized() -> None:
    assert problem_of(planned(target_size=50_000)).activations == {}
    assert problem_of(planned(target_bitops=10**8, activation_bits=None)).activations == {}
    assert len(problem_of(planned(target_bitops=10**8)).activations) == len(planned().bits.activations)


def test_a_plan_of_chosen_bits_has_them() -> None:
    plan = planned(target_bitops=16_000_000)
    choice = chosen(plan)
    assert chosen_plan(plan, choice.bits, CPU).bits == choice.bits
    assert choice.num_bitops <= 16_000_000


# --- the repair round


def test_costs_of_units_that_are_far_off_are_corrected_and_bits_move_by_one() -> None:
    plan = planned(target_size=48_000)
    choice = chosen(plan)
    plan = chosen_plan(plan, choice.bits, CPU)
    far = [UnitCost(unit.name, 1.0, 1.0, 30.0 if unit.name == "layer2" else 1.0) for unit in plan.units]
    bits = repaired_bits(choice, plan, far)
    assert bits is not None
    moved = {name: number - choice.bits.weights[name] for name, number in bits.weights.items()}
    assert max(map(abs, moved.values())) == 1
    (unit,) = (unit for unit in plan.units if unit.name == "layer2")
    assert max(moved[name] for name in unit.layers) == 1 and min(moved[name] for name in unit.layers) >= 0
    assert choice.problem.size.num_bytes(bits.weights) <= 48_000
    near = [UnitCost(unit.name, 1.0, 1.0, 1.1) for unit in plan.units]
    assert repaired_bits(choice, plan, near) is None


def test_units_before_the_first_change_are_the_same() -> None:
    plan, other = planned(), planned(bits_table=BitTable(weights={"layer2.0.conv2": 3}))
    sites = unit_sites(plan)
    names = [unit.name for unit in plan.units]
    assert unchanged_parts(plan.units, sites, plan.bits, other.bits) == names.index("layer2")
    assert unchanged_parts(plan.units, sites, plan.bits, plan.bits) == len(names)
    assert sorted(name for own in sites for name in own) == sorted(site.name for site in plan.bits.activations)
    assert "layer2.0.conv1.input" in sites[names.index("layer2")]


def test_noise_of_an_estimate_makes_no_smaller_width_the_cheaper_one() -> None:
    problem = problem_of(planned(target_size=60_000))
    weights, sites = costs(problem)
    noisy = {name: {**each, 7: 0.5 * each[8], 3: 2 * each[2]} for name, each in weights.items()}
    found = choose(problem, noisy, sites).problem.weights
    assert all(sorted(each.values(), reverse=True) == list(each.values()) for each in found.values())
    assert all(each[7] == each[8] and each[2] == each[3] for each in found.values())
