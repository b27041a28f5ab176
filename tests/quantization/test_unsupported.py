"""Units in an arithmetic that they cannot be computed in: found out before the work, and gone around in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from genie_cli.config import QuantizeConfig
from genie_cli.models.graph.tensors import named_tensors
from genie_cli.models.teacher import make_teacher
from genie_cli.quantization.plan import QuantizationPlan, make_plan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.quantization.result import QuantizedNetwork
from genie_cli.quantization.unsupported import unsupported_quantization
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Event, Note, silent
from tests.support import CPU, lacking
from tests.support.networks import noise, plain_input

HALF = RunContext.alone(CPU, torch.bfloat16, silent)
FLOAT = RunContext.alone(CPU, torch.float32, silent)
IMAGES = noise(6, size=8)


def plan_of(make: lacking.Factory, **options: Any) -> QuantizationPlan:
    config = QuantizeConfig(num_steps=3, batch_size=4, weight_range="minmax", activation_range="minmax", **options)
    return make_plan(make_teacher("network", make(), plain_input(1, 8)), config, CPU)


def same(one: QuantizedNetwork, other: QuantizedNetwork) -> bool:
    weights = all(torch.equal(weight.codes, other.weights[name].codes) for name, weight in one.weights.items())
    return weights and [unit.relative_error for unit in one.units] == [unit.relative_error for unit in other.units]


@pytest.mark.parametrize("unit", ["block", "layer", "network"])
def test_what_a_unit_cannot_be_computed_in_is_found_before_the_work(unit: str):
    assert "_upsample_bilinear2d_aa" in str(
        unsupported_quantization(plan_of(lacking.shrinking, unit=unit), IMAGES, HALF)
    )
    assert unsupported_quantization(plan_of(lacking.shrinking, unit=unit), IMAGES, FLOAT) is None
    assert unsupported_quantization(plan_of(lacking.fine, unit=unit), IMAGES, HALF) is None


def test_a_gradient_that_is_missing_is_found():
    assert unsupported_quantization(plan_of(lacking.doubling, unit="network"), IMAGES, HALF) == "doubled of 'odd'"


def test_autocast_takes_care_of_mixed_dtypes():
    """A float32 factor makes an activation float32, which the convolution behind it takes in bfloat16 again."""

    class Scaled(lacking.Body):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first_norm(self.first(x)).relu() * torch.linspace(0.5, 1.5, 6).view(-1, 1, 1)
            return self.classify(self.second_norm(self.second(x)).relu().mean((2, 3)))

    assert unsupported_quantization(plan_of(Scaled), IMAGES, HALF) is None


@pytest.mark.parametrize("rounding", ["genie", "adaround", "adaquant", "nearest"])
def test_every_way_of_learning_can_be_asked_about(rounding: str):
    options = {"rounding": rounding, "drop_prob": 0.5, "patience": 2}
    assert unsupported_quantization(plan_of(lacking.fine, **options), IMAGES, HALF) is None


def test_one_image_is_enough():
    assert unsupported_quantization(plan_of(lacking.fine), IMAGES[:1], HALF) is None


def test_nothing_is_asked_where_nothing_learns():
    assert unsupported_quantization(plan_of(lacking.shrinking, reconstruct=False), IMAGES, HALF) is None


def test_a_unit_that_fails_learns_in_float32():
    """For those who call the library in bfloat16 without asking before."""
    events = list[Event]()
    context = replace(HALF, report=events.append)
    network = quantize_network(plan_of(lacking.shrinking), IMAGES, context)
    assert all(0 < unit.relative_error < 1 and unit.num_steps == 3 for unit in network.units)
    notes = [event.message for event in events if isinstance(event, Note) and event.warning]
    assert len(notes) == 1, "the other units are computed in bfloat16"
    assert "bfloat16 cannot be used" in notes[0] and "tried again in float32" in notes[0]


def test_asking_before_changes_nothing():
    plan = plan_of(lacking.fine)
    before = {name: tensor.clone() for name, tensor in named_tensors(plan.folded.graph).items()}
    state = torch.get_rng_state()
    unsupported_quantization(plan, IMAGES, HALF)
    assert torch.equal(torch.get_rng_state(), state)
    after = named_tensors(plan.folded.graph)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert same(quantize_network(plan, IMAGES, HALF), quantize_network(plan_of(lacking.fine), IMAGES, HALF))
