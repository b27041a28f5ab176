"""Slopes of leaky rectifiers on the command line: what is told of them, and what is checked."""

from __future__ import annotations

import json
from pathlib import Path

from tests.commands.conftest import Genie

NETWORK = """
import torch
from torch import nn


def prelu():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.PReLU(6), nn.Conv2d(6, 8, 3), nn.PReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 10),
    )
"""
MODEL = "network.py:prelu"
INPUT = ("--num-channels", "1", "--input-size", "16", "--mean", "0", "--std", "1")


def lines_of(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_slopes_are_told_and_checked(genie: Genie) -> None:
    Path("network.py").write_text(NETWORK)
    shown = lines_of(genie("inspect", MODEL, *INPUT).stdout)
    assert "slopes of leaky rectifiers 7 in 2 tensors, 8 bits each" in shown
    assert "quantized 100.0% of the parameters, 100.0% of the multiplications" in shown
    described = json.loads(genie("inspect", MODEL, *INPUT, "--json").stdout)
    assert described["slopes"] == [{"name": "1", "shape": [6], "bits": 8}, {"name": "3", "shape": [1], "bits": 8}]
    options = ("--images", "digits", "--num-images", "8", "--preset", "minmax", "--weight-bits", "3")
    genie("quantize", "--model", MODEL, *INPUT, *options, "--out", "q")
    assert {"1 6 8 symmetric", "3 1 8 symmetric"} <= set(lines_of(genie("inspect", "q").stdout))
    checked = lines_of(genie("verify", "q", "--model", MODEL).stdout)
    assert "weights 3 layers and the slopes of 2 rectifiers, codes within their bits, scales positive" in checked


def test_an_override_does_not_name_slopes(genie: Genie) -> None:
    Path("network.py").write_text(NETWORK)
    found = genie("inspect", MODEL, *INPUT, "--bits-override", "1=4,8", code=2)
    assert "matches no layer" in found.stderr
