"""Which stored tensors are slopes of leaky rectifiers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genie_cli.config import InputSpec
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.coverage import coverage
from genie_cli.models.graph.slopes import slopes
from tests.support.rectifiers import SLOPES, SPEC, rectifiers

Form = Callable[[Tensor, Tensor], Tensor]
RECTIFIERS: dict[str, Form] = {
    "prelu": lambda x, a: torch.prelu(x, a.flatten()),
    "above": lambda x, a: torch.where(x > 0, x, a * x),
    "above or at": lambda x, a: torch.where(x >= 0, x, x * a),
    "below": lambda x, a: torch.where(x < 0, a * x, x),
    "maximum": lambda x, a: torch.maximum(x, a * x),
    "relu of the negative": lambda x, a: F.relu(x) - a * F.relu(-x),
    "clip": lambda x, a: F.relu(x) + a * x.clamp(max=0),
    "magnitude": lambda x, a: F.relu(x) + a * (x - x.abs()) * 0.5,
    "half the magnitude": lambda x, a: F.relu(x) + a * ((x - x.abs()) * 0.5),
}
OTHERS: dict[str, Form] = {
    "scale": lambda x, a: x * a,
    "scale above zero": lambda x, a: torch.where(x > 0, a * x, x),
    "other threshold": lambda x, a: torch.where(x > 1, x, a * x),
    "another tensor decides": lambda x, a: torch.where(x.sin() > 0, x, a * x),
    "clip at one": lambda x, a: F.relu(x) + a * x.clamp(max=1),
    "a second reader": lambda x, a: torch.maximum(x, a * x) + a,
    "positive part": lambda x, a: a * F.relu(x),
    "values below": lambda x, a: torch.where(x > 0, x, a),
}


class Net(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.conv, self.form, self.a = nn.Conv2d(3, 4, 1), form, nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self.conv(x), self.a).mean((2, 3))


def found(form: Form) -> tuple[list[tuple[int, ...]], float, set[str]]:
    """The number of elements of each slope, the share of quantized parameters, and what stays in float."""
    graph = capture(Net(form).eval(), InputSpec(size=4))
    cover = coverage(graph, {})
    return (
        [tuple(graph.get_buffer(slope.key).flatten().shape) for slope in slopes(graph)],
        cover.parameters,
        {*cover.in_float},
    )


@pytest.mark.parametrize("name", RECTIFIERS)
def test_a_rectifier_s_slope_is_quantized(name: str) -> None:
    assert found(RECTIFIERS[name]) == ([(4,)], 1.0, set())


@pytest.mark.parametrize("name", OTHERS)
def test_another_tensor_stays_in_float_and_is_listed(name: str) -> None:
    shapes, share, in_float = found(OTHERS[name])
    assert not shapes
    assert in_float
    assert share < 1


def test_shared_slopes_are_one_tensor() -> None:
    graph = capture(rectifiers(), SPEC)
    assert {slope.name: tuple(graph.get_buffer(slope.key).shape) for slope in slopes(graph)} == SLOPES


def test_the_reason_is_the_reader_that_is_no_rectifier() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.a = nn.Linear(3, 4), nn.Parameter(torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.prelu(self.fc(x.mean((2, 3))), self.a) + self.a

    cover = coverage(capture(Twice().eval(), InputSpec(size=4)), {})
    assert cover.in_float == {"a": "read by add"}
