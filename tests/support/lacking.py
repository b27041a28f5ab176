"""Networks that bfloat16 cannot compute: an operation that lacks it, dtypes that mix, a gradient that is missing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Factory = Callable[[], nn.Module]


class Body(nn.Module):
    """Three convolutions, with statistics of their own, and a classifier; subclasses work in the middle."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(40)
        self.first, self.first_norm = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.odd = self.make_odd()
        self.second, self.second_norm = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.classify = nn.Linear(8, 3)
        for norm in (self.first_norm, self.second_norm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def make_odd(self) -> nn.Module:
        """The module in the middle, ``[B, 6, S, S]`` to ``[B, 6, ...]``."""
        return nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.odd(self.first_norm(self.first(x)).relu())
        return self.classify(self.second_norm(self.second(x)).relu().mean((2, 3)))


class Shrink(nn.Module):
    """Halves a map by an antialiased resize, for which a CPU has no bfloat16 kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)


class HardGate(nn.Module):
    """Closes channels by a gate that the network's own code makes float32."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        is_open = self.gate(x.mean((2, 3))) > -0.5
        return x * is_open.float().unsqueeze(-1).unsqueeze(-1)


@torch.library.custom_op("genie_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    """Twice x, with a gradient in float32 alone."""
    return x + x


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _pass_back(context: object, grad: Tensor) -> Tensor:
    if grad.dtype != torch.float32:
        raise NotImplementedError(f"doubled has no gradient for {grad.dtype}")
    return grad + grad


doubled.register_autograd(_pass_back)


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return doubled(x)


class Filter(nn.Module):
    """Multiplies the frequencies of 8x8 maps by pairs of numbers that are viewed as complex ones."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.Parameter(torch.randn(6, 8, 5, 2) / 2)

    def forward(self, x: Tensor) -> Tensor:
        frequencies = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.pairs)
        return torch.fft.irfft2(frequencies, s=(8, 8), norm="ortho")


class Shrinking(Body):
    def make_odd(self) -> nn.Module:
        return Shrink()


class Gated(Body):
    def make_odd(self) -> nn.Module:
        return HardGate()


class Doubling(Body):
    def make_odd(self) -> nn.Module:
        return Double()


class Filtering(Body):
    def make_odd(self) -> nn.Module:
        return Filter()


def fine() -> nn.Module:
    """Bfloat16 can compute this one."""
    return Body()


def shrinking() -> nn.Module:
    """An operation lacks bfloat16, whatever autocast does."""
    return Shrinking()


def gated() -> nn.Module:
    """Float32 meets bfloat16 weights."""
    return Gated()


def doubling() -> nn.Module:
    """A gradient lacks bfloat16."""
    return Doubling()


def filtering() -> nn.Module:
    """Frequencies lack bfloat16, and a parameter may not change its layout."""
    return Filtering()
