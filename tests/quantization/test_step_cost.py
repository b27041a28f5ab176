"""The cost of a unit's steps, in multiplications, activations and weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genie_cli.config import QuantizeConfig
from genie_cli.models.teacher import make_teacher
from genie_cli.quantization.plan import QuantizationPlan, make_plan
from genie_cli.quantization.step_cost import _PER_ACTIVATION, _PER_WEIGHT, step_cost_shares
from tests.support.networks import plain_input

BATCH = 8


def plan_of(network: nn.Module, size: int = 8, **options: object) -> QuantizationPlan:
    config = QuantizeConfig(batch_size=BATCH, num_steps=2, **options)
    return make_plan(make_teacher("network", network, plain_input(3, size)), config, None)


def chain(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_the_shares_of_two_layers():
    plan = plan_of(chain(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, groups=2)))
    first = BATCH * (4 * 64 * 27 + _PER_ACTIVATION * (3 * 64 + 2 * 4 * 64)) + _PER_WEIGHT * 4 * 27
    # behind the second layer: its output 6 x 3 x 3, the pooled one, the flattened one
    second = BATCH * (6 * 9 * 18 + _PER_ACTIVATION * (4 * 64 + 6 * 9 + 6 + 6)) + _PER_WEIGHT * 6 * 18
    assert step_cost_shares(plan) == pytest.approx([first / (first + second), second / (first + second)])


def test_shares_add_up_to_one_and_follow_the_maps():
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    shares = step_cost_shares(plan_of(chain(*layers), size=32))
    assert sum(shares) == pytest.approx(1)
    assert shares[0] > 5 * shares[1]


def test_a_unit_of_layers_learned_one_by_one_costs_each_time():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.b(self.a(x).relu())

    network = chain(nn.Conv2d(3, 4, 1), Block())
    together, apart = (step_cost_shares(plan_of(network, unit=unit)) for unit in ("block", "layer"))
    assert apart[1] / apart[0] == pytest.approx(2 * together[1] / together[0])
