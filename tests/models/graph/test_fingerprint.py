"""The hash of a computation: equal for equal networks, another one for any other operation or number."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genie_cli.config import InputSpec
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.fingerprint import graph_sha256


class Net(nn.Module):
    """One weight, and all else is given."""

    def __init__(self, activation: Any = F.relu, stride: int = 1, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3, 3, 3))
        self.activation, self.stride, self.gain = activation, stride, gain

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(F.conv2d(x, self.weight, stride=self.stride)) * self.gain
        return (y + torch.tensor([0.5])).mean((2, 3))


class Constant(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(F.conv2d(x, self.weight, stride=self.stride)) * self.gain
        return (y + torch.tensor([0.25])).mean((2, 3))


def hash_of(network: nn.Module) -> str:
    return graph_sha256(capture(network.eval(), InputSpec(size=8)))


@pytest.mark.parametrize(
    "other", [Net(F.gelu), Net(stride=2), Net(gain=1.5), Constant()], ids=["function", "argument", "number", "constant"]
)
def test_it_tells_computations_of_the_same_weights_apart(other: nn.Module) -> None:
    assert hash_of(Net()) == hash_of(Net())
    assert hash_of(other) != hash_of(Net())


def test_it_tells_weights_apart() -> None:
    other = Net()
    nn.init.zeros_(other.weight)
    assert hash_of(other) != hash_of(Net())


def test_another_process_finds_the_same() -> None:
    script = (
        "from genie_cli.config import ModelConfig; from genie_cli.models.zoo import load_teacher; "
        "from genie_cli.models.graph.fingerprint import graph_sha256; "
        "print(graph_sha256(load_teacher(ModelConfig(name='digits_resnet')).graph))"
    )
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True) for _ in range(2)]
    assert len({run.stdout for run in runs}) == 1 and len(runs[0].stdout) == 65
