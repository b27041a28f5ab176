"""Coverage against PyTorch's own count of multiplications, and against the parameters of modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.backends import mkldnn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import DeformConv2d

from genie_cli.config import InputSpec
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.coverage import coverage
from genie_cli.models.graph.folding import fold_batch_norms

SPEC = InputSpec(size=8)


class Attention(nn.Module):
    """A head over 64 tokens of 8 values: by PyTorch's operation, or written by hand."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.qkv, self.proj, self.by_hand = nn.Linear(8, 24), nn.Linear(8, 8), by_hand

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
        if self.by_hand:
            return self.proj((q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v)
        return self.proj(F.scaled_dot_product_attention(q, k, v))


class Outer(nn.Module):
    """Features multiplied with each other by `einsum`: a product without a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.einsum("bchw,bdhw->bcd", x, x).flatten(1))


def head(num_features: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(num_features, 4))


BODIES = {
    "grouped": nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, groups=4), head(8)),
    "same": nn.Sequential(nn.Conv2d(8, 12, (1, 5), padding="same"), head(12)),
    "transposed": nn.Sequential(nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2), head(6)),
    "attention": nn.Sequential(Attention(by_hand=False), nn.Flatten(), nn.Linear(512, 4)),
    "attention by hand": nn.Sequential(Attention(by_hand=True), nn.Flatten(), nn.Linear(512, 4)),
    "einsum": Outer(),
    "gru": nn.Sequential(nn.Flatten(2), nn.GRU(64, 16, batch_first=True, bidirectional=True)),
    "lstm": nn.Sequential(nn.Flatten(2), nn.LSTM(64, 16, batch_first=True)),
}


class Whole(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), body

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x).relu())
        return x[0].mean(1) if isinstance(x, tuple) else x


def multiplications_in_modules(network: nn.Module) -> float:
    """Multiplications of convolutions and linear layers, as a share of all: FLOPs that PyTorch counts on its own."""
    with torch.no_grad(), mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 8, 8))
    counts = {str(name): sum(found.values()) for name, found in counter.get_flop_counts().items()}
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    layers = [f"Whole.{name}" for name, module in network.named_modules() if isinstance(module, kinds)]
    return sum(counts.get(name, 0) for name in layers) / counts["Global"]


@pytest.mark.parametrize("name", BODIES)
def test_shares_are_those_that_others_count(name: str):
    network = Whole(BODIES[name]).eval()
    found = coverage(capture(network, SPEC), {})
    assert found.multiplications == pytest.approx(multiplications_in_modules(network), rel=1e-6)
    weights = {key: value.numel() for key, value in network.named_parameters() if not key.endswith(".bias")}
    left = {key: count for key, count in weights.items() if name in ("gru", "lstm") and key.startswith("body.1.")}
    assert set(found.in_float) == set(left)
    quantized = sum(weights.values()) - sum(left.values())
    assert found.parameters == pytest.approx(quantized / sum(weights.values()), rel=1e-6)
    assert found.is_low == (min(found.parameters, found.multiplications) < 0.9)


def test_a_deformable_convolution_counts_as_a_convolution_of_its_size():
    class Deformed(nn.Module):
        def __init__(self, is_plain: bool) -> None:
            super().__init__()
            self.offset = nn.Conv2d(3, 18, 3, padding=1)
            self.conv = nn.Conv2d(3, 4, 3, padding=1) if is_plain else DeformConv2d(3, 4, 3, padding=1)
            self.is_plain = is_plain

        def forward(self, x: Tensor) -> Tensor:
            offset = self.offset(x)
            y = self.conv(x) if self.is_plain else self.conv(x, offset)
            product = torch.einsum("bchw,bdhw->bcd", y, offset)  # what is not quantized
            return product.flatten(1)

    plain, deformed = (coverage(capture(Deformed(kind).eval(), SPEC), {}) for kind in (True, False))
    assert plain.multiplications < 1
    assert deformed == plain


def test_batch_norms_that_stay_count_as_an_affine_map_per_channel():
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.bn, self.fc = (
                nn.Conv2d(3, 8, 1),
                nn.Conv2d(3, 8, 1),
                nn.BatchNorm2d(16),
                nn.Linear(16, 4),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.bn(torch.cat([self.a(x), self.b(x)], 1)).relu().mean((2, 3)))

    folded = fold_batch_norms(capture(Joined().eval(), SPEC))
    found = coverage(folded.graph, folded.unfolded)
    weights = 2 * 3 * 8 + 16 * 4
    assert found.parameters == pytest.approx(weights / (weights + 16))  # the shifts are biases
    assert "1 batch norm(s)" in found.described()
