"""A network whose batch norms were never trained is told of: a forgotten --weights."""

from __future__ import annotations

from pathlib import Path

from tests.commands.conftest import Genie

SOURCE = """
import torch
from torch import nn

def fresh():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))

def trained():
    network = fresh()
    network[1].running_mean += 0.1
    return network
"""


def test_statistics_that_were_never_trained(genie: Genie) -> None:
    Path("net.py").write_text(SOURCE)
    options = ("--n", 2, "--num-steps", 1, "--input-size", 8)
    stderr = genie("synthesize", "--model", "net.py:fresh", *options).stderr
    assert "Warning: all batch norms of 'net.py:fresh' have mean 0 and variance 1" in stderr
    assert "never trained" not in genie("synthesize", "--model", "net.py:trained", *options).stderr
