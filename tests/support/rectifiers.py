"""A network of leaky rectifiers with learned slopes, in the forms that networks write them in."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genie_cli.config import InputSpec

SPEC = InputSpec(num_channels=1, size=8, mean=(0.0,), std=(1.0,))
SLOPES = {"act": (6,), "one": (1,), "own": (4,), "chosen": (4, 1, 1)}
"""Name -> shape."""


class Rectifiers(nn.Module):
    """A slope per channel that two rectifiers share, a single one, a functional one, and one written by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.a, self.bn, self.act = nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.PReLU(6)
        self.b, self.c, self.one = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 1), nn.PReLU()
        self.own = nn.Parameter(torch.randn(4) * 0.2)
        self.chosen = nn.Parameter(torch.rand(4, 1, 1) * 0.3)
        self.fc = nn.Linear(4, 5)
        with torch.no_grad():
            self.act.weight.copy_(torch.tensor([0.25, -0.5, 0.1, 0.013, 0.0, 0.9]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.b(self.act(self.bn(self.a(x)))))
        x = F.prelu(self.one(self.c(x)), self.own)
        x = torch.where(x > 0, x, x * self.chosen)
        return self.fc(x.mean((2, 3)))


def rectifiers() -> nn.Module:
    return Rectifiers().eval()
