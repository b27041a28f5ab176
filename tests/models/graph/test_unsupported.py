"""The operation that an arithmetic lacks is named, with the module that it stands in."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, fx, nn

from genie_cli.models.graph.unsupported import unsupported_operation
from genie_cli.models.teacher import make_teacher
from tests.support import lacking
from tests.support.networks import plain_input


def named(network: nn.Module, dtype: torch.dtype, autocast: bool = False, backward: bool = True) -> str | None:
    graph = make_teacher("network", network, plain_input(1, 8)).graph
    images = torch.zeros(2, 1, 8, 8, dtype=torch.float32 if autocast else dtype)
    if autocast:
        return unsupported_operation(graph, [images], torch.autocast("cpu", dtype), backward)
    return unsupported_operation(graph.to(dtype), [images], nullcontext(), backward)


def test_an_operation_without_a_kernel_is_named():
    assert named(lacking.shrinking(), torch.bfloat16) == "_upsample_bilinear2d_aa of 'odd'"
    assert named(lacking.shrinking(), torch.bfloat16, autocast=True) == "_upsample_bilinear2d_aa of 'odd'"


def test_the_operation_at_which_dtypes_mix_is_named():
    assert named(lacking.gated(), torch.bfloat16) == "conv2d of 'second'"


def test_an_operation_without_a_gradient_is_named():
    assert named(lacking.doubling(), torch.bfloat16) == "doubled of 'odd'"
    assert named(lacking.doubling(), torch.bfloat16, backward=False) is None


@pytest.mark.parametrize("make", [lacking.fine, lacking.shrinking, lacking.gated, lacking.doubling])
def test_nothing_is_named_where_all_can_be_computed(make: object):
    assert named(make(), torch.float32) is None
    assert named(lacking.fine(), torch.bfloat16) is None
    assert named(lacking.fine(), torch.bfloat16, autocast=True) is None


def test_operations_may_write_to_their_inputs():
    """As the graphs of synthesis do: `relu_` on a normalised tensor, whose value nothing else reads."""

    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 2).relu_().add_(1)

    assert unsupported_operation(fx.symbolic_trace(InPlace()), [torch.zeros(1, 2)], nullcontext()) is None


def test_a_failure_belongs_to_its_operation_and_not_to_what_stands_behind_it():
    """The gradient of `doubled` fails, the logarithm that reads it is sound."""

    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return lacking.doubled(x.exp()).log()

    graph = fx.symbolic_trace(Chain(), concrete_args=None)
    assert "doubled" in str(unsupported_operation(graph, [torch.zeros(2, 3, dtype=torch.bfloat16)], nullcontext()))
