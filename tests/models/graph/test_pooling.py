"""Max pooling with a gradient that repeats: against PyTorch's own, on any geometry."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from genie_cli.config import InputSpec
from genie_cli.models.graph.pooling import _MaxPool, max_pool2d, with_repeatable_pooling
from genie_cli.models.teacher import make_teacher

sides = st.tuples(st.integers(4, 11), st.integers(4, 11))


@settings(max_examples=150, deadline=None)
@given(
    size=sides,
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    ceil_mode=st.booleans(),
    data=st.data(),
)
def test_values_and_gradients_are_pytorchs(size, kernel, stride, dilation, ceil_mode, data):  # type: ignore[no-untyped-def]
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    if any(s + 2 * p < d * (k - 1) + 1 for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)):
        return
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=draws, dtype=torch.float64).requires_grad_()
    own = x.detach().clone().requires_grad_()
    wanted = F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
    found = _MaxPool.apply(own, kernel, stride, padding, dilation, ceil_mode)
    assert torch.equal(found, wanted)
    incoming = torch.randn(wanted.shape, generator=draws, dtype=torch.float64)
    wanted.backward(incoming)
    found.backward(incoming)
    torch.testing.assert_close(own.grad, x.grad)


def test_arguments_of_the_graph_are_understood():
    x = torch.randn(1, 2, 9, 9)
    assert torch.equal(max_pool2d(x, [3, 3], [2, 2], [1, 1]), F.max_pool2d(x, 3, 2, 1))
    assert torch.equal(max_pool2d(x, [3]), F.max_pool2d(x, 3))
    assert torch.equal(max_pool2d(x, [2, 2], [2, 2], [0, 0], [1, 1], True), F.max_pool2d(x, 2, 2, ceil_mode=True))


class Pooled(nn.Module):
    """A convolution, a pooling with overlapping windows, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(1, 4, 3), nn.MaxPool2d(3, 2, 1), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.conv(x)).mean((2, 3)))


def test_a_graph_keeps_its_output():
    spec = InputSpec(num_channels=1, size=8, mean=(0.0,), std=(1.0,))
    graph = make_teacher("pooled", Pooled(), spec).graph
    images = torch.randn(3, 1, 8, 8)
    wanted = graph(images)
    rewritten = with_repeatable_pooling(graph)
    assert any(node.target is max_pool2d for node in rewritten.graph.nodes)
    assert torch.equal(rewritten(images), wanted)
