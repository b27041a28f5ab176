"""Recorded operations: replays do what the function did, with other inputs, and nothing is held longer."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from genie_cli.runtime.operation_list import Recording


def test_a_recorded_descent_goes_on_in_closed_form():
    """p <- p - lr * 2 p, with a rate that is read where it is: each step shrinks p by 1 - 2 lr."""
    p, lr = torch.tensor([1.0, -2.0], requires_grad=True), torch.tensor(0.1)

    def step() -> None:
        (gradient,) = torch.autograd.grad(p.square().sum(), [p])
        with torch.no_grad():
            p.sub_(lr * gradient)

    recording = Recording([p])
    with recording:
        step()
    replay = recording.replay()
    np.testing.assert_allclose(p.detach(), [0.8, -1.6], rtol=1e-6)  # the recorded call counts
    replay(p)
    np.testing.assert_allclose(p.detach(), [0.64, -1.28], rtol=1e-6)
    lr.fill_(0.25)
    replay(p)
    np.testing.assert_allclose(p.detach(), [0.32, -0.64], rtol=1e-6)


def test_replays_take_other_inputs_and_leave_those_of_the_recording_alone():
    total, first, second = torch.zeros(()), torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])
    recording = Recording([first])
    with recording:
        total.add_((first * 3).sum())
    recording.replay()(second)
    assert float(total) == 9 + 90
    assert first.tolist() == [1, 2] and second.tolist() == [10, 20]


def test_views_parts_and_given_places_are_written_through():
    place = torch.zeros(2, 3)

    def write(x: Tensor) -> None:
        low, high = x.chunk(2)
        row = place.view(6)[:3]
        torch.mul(low, 2, out=row)
        place[1].copy_(high).add_(1)

    recording = Recording([x := torch.arange(6.0)])
    with recording:
        write(x)
    assert place.tolist() == [[0, 2, 4], [4, 5, 6]]
    recording.replay()(-x)
    assert place.tolist() == [[0, -2, -4], [-2, -3, -4]]


@settings(deadline=None, max_examples=25)
@given(
    channels=st.integers(1, 4),
    size=st.integers(3, 6),
    stride=st.integers(1, 2),
    reduced=st.booleans(),
    adam=st.booleans(),
    seed=st.integers(0, 99),
)
def test_replayed_training_is_ordinary_training(
    channels: int, size: int, stride: int, reduced: bool, adam: bool, seed: int
):
    """Module, autocast, loss and optimizer: five recorded steps give the bits of five ordinary ones."""

    def train(recorded: bool) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(channels, 3, 3, stride, 1), nn.ReLU(), nn.MaxPool2d(2, 1, 1), nn.Flatten(1))
        for parameter in net.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)
        parameters = list(net.parameters())
        optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
        if adam:
            optimizer = torch.optim.Adam(parameters, lr=0.05, fused=True)
        replay = None
        for _ in range(5):
            x = torch.randn(2, channels, size, size, generator=generator)

            def step(x: Tensor = x) -> None:
                with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
                    output = net(x)
                loss = F.mse_loss(output.float(), torch.ones(output.shape))
                gradients = torch.autograd.grad(loss, list(net.parameters()))
                for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()

            if not recorded or not optimizer.state:
                step()  # the first makes the optimizer's state
            elif replay is None:
                recording = Recording([x])
                with recording:
                    step()
                replay = recording.replay()
            else:
                replay(x)
        return [parameter.detach() for parameter in net.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(train(False), train(True), strict=True))


def test_an_optimizer_that_counts_in_python_is_not_taken_for_one_that_counts_in_tensors():
    p = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([p], lr=0.1, foreach=False)  # its bias correction is a Python number of the step
    p.grad = torch.ones(3)
    optimizer.step()
    recording = Recording([p])
    with recording:
        optimizer.step()
    assert recording.obstacle is not None


@pytest.mark.parametrize("kind", ["value", "random", "dropout"])
def test_what_differs_from_call_to_call_cannot_be_replayed(kind: str):
    x, total = torch.tensor([2.0, 3.0]), torch.zeros(())

    def choose() -> None:
        if kind == "value":
            total.add_(x.sum() * float(x[0]))
        elif kind == "random":
            total.add_(10 + 0 * torch.rand(2).sum())
        else:
            total.add_(10 + 0 * F.dropout(x, 0.5, training=True).sum())

    recording = Recording([x])
    with recording:
        choose()
    assert float(total) == 10  # computed all the same
    assert recording.obstacle is not None
    with pytest.raises(ValueError, match="other values each time"):
        recording.replay()


def test_values_in_between_live_no_longer_than_they_would():
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    x, total = torch.ones(4), torch.zeros(())

    def step() -> None:
        for _ in range(5):
            middle = x * 2
            seen.append(weakref.ref(middle))
            total.add_(middle.sum())
            del middle
            alive.append(sum(ref() is not None for ref in seen))

    with Recording([x]):
        step()
    assert alive == [0] * 5


def test_what_has_no_effect_is_dropped_and_gradients_are_off():
    x, total = torch.ones(2, requires_grad=True), torch.zeros(())
    recording = Recording([x])
    with recording:
        (x * 5).exp()
        with torch.no_grad():
            total.add_(x.sum())
    replay = recording.replay()
    replay(x)
    assert float(total) == 4 and not total.requires_grad
    targets = [node.target for node in recording._graph.nodes]
    assert torch.ops.aten.exp.default not in targets and torch.ops.aten.add_.Tensor in targets
