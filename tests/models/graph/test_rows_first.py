"""Products with a parameter and transposed convolutions become weight layers that compute the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d

from genie_cli.config import InputSpec
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.coverage import coverage
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import make_teacher

SPEC = InputSpec(size=8)


class Body(nn.Module):
    """A stem of eight channels on 8x8 maps, then a function of the network and its features."""

    def __init__(self, function: Callable[[Body, Tensor], Tensor], **parts: nn.Module | nn.Parameter):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, torch.relu(self.stem(x)))


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))) / 4)


def tokens(x: Tensor) -> Tensor:
    """``[B, 64, 8]``."""
    return x.flatten(2).transpose(1, 2)


PRODUCTS = {
    "matmul of vectors": (lambda n, x: x.mean((2, 3)) @ n.w, (8, 5), "linear", (5, 8)),
    "matmul of tokens": (lambda n, x: (tokens(x) @ n.w).mean(1), (8, 5), "linear", (5, 8)),
    "parameter on the left": (lambda n, x: (n.w @ tokens(x)).mean(2), (5, 64), "contraction", (5, 64)),
    "one matrix per token": (
        lambda n, x: torch.einsum("btc,tco->bto", tokens(x), n.w).mean(1), (64, 8, 5), "contraction", (320, 8),
    ),
    "bmm per token": (
        lambda n, x: torch.bmm(tokens(x).transpose(0, 1), n.w).mean(0), (64, 8, 5), "contraction", (320, 8),
    ),
    "einsum over channels": (
        lambda n, x: torch.einsum("bchw,cd->bdhw", x, n.w).mean((2, 3)), (8, 5), "contraction", (5, 8),
    ),
    "einsum that sums": (lambda n, x: torch.einsum("bchw,cd->bd", x, n.w), (8, 5), "contraction", (5, 8)),
    "addmm": (lambda n, x: torch.addmm(n.stem.bias[:5], x.mean((2, 3)), n.w), (8, 5), "linear", (5, 8)),
    "vector": (lambda n, x: F.linear(tokens(x), n.w), (8,), "contraction", (1, 8)),
    "tensordot": (lambda n, x: torch.tensordot(x, n.w, ([1], [0])).mean((1, 2)), (8, 5), "contraction", (5, 8)),
    "transposed by hand": (lambda n, x: x.mean((2, 3)) @ n.w.t(), (5, 8), "linear", (5, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_with_a_parameter_is_a_weight_layer(name: str):
    function, shape, kind, rows = PRODUCTS[name]
    network = Body(function, w=parameter(*shape)).eval()
    graph = capture(network, SPEC)
    layer = weight_layers(graph)[-1]
    assert layer.kind == kind
    assert tuple(get_tensor(graph, layer.weight_key).shape) == rows
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(graph(images), network(images), rtol=1e-5, atol=1e-5)
    assert coverage(graph, {}).parameters == 1


def test_rows_are_the_output_channels():
    """A row scaled by two doubles one output and leaves the others, whatever the product."""
    for name, (function, shape, _, _) in PRODUCTS.items():
        graph = capture(Body(function, w=parameter(*shape)).eval(), SPEC)
        layer, images = weight_layers(graph)[-1], torch.randn(2, 3, 8, 8)
        before = graph(images).double()
        get_tensor(graph, layer.weight_key)[0] *= 2
        moved = (graph(images).double() - before).abs().amax(0)
        assert moved.flatten()[0] > 0, name
        if moved.numel() > 1 and len(get_tensor(graph, layer.weight_key)) == moved.numel():
            assert moved.flatten()[1:].max() == 0, name


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_transposed_convolutions_fold_and_stay_what_they_are(dims: int, groups: int):
    make = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    up, bn = make(8, 12, 3, stride=2, padding=1, output_padding=1, groups=groups), norm(12)
    bn.weight.data.uniform_(0.5, 2)
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    shaped = {1: lambda x: x.flatten(2), 2: lambda x: x, 3: lambda x: x.unsqueeze(2)}[dims]
    network = Body(lambda n, x: n.bn(n.up(shaped(x))).flatten(2).mean(2), up=up, bn=bn)
    teacher = make_teacher("net", network, SPEC)
    folded = fold_batch_norms(teacher.graph, teacher.reference)
    assert folded.unfolded == {}
    assert weight_layers(folded.graph)[-1].kind == f"conv_transpose{dims}d"
    assert tuple(get_tensor(folded.graph, "up.weight").shape[:2]) == (12, 8 // groups)
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(folded.graph(images), network(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "parts", "function"),
    [
        ("conv1d", {"c": nn.Conv1d(8, 4, 4, padding="same")}, lambda n, x: n.c(x.flatten(2)).mean(2)),
        ("conv2d", {"c": nn.Conv2d(8, 4, 4, padding="same")}, lambda n, x: n.c(x).mean((2, 3))),
        ("conv3d", {"c": nn.Conv3d(8, 4, 2, padding="same")}, lambda n, x: n.c(x.unsqueeze(2)).mean((2, 3, 4))),
        ("bilinear", {"c": nn.Bilinear(8, 8, 4)}, lambda n, x: n.c(x.mean((2, 3)), x.amax((2, 3)))),
        (
            "deform_conv2d",
            {"c": DeformConv2d(8, 4, 3, padding=1), "o": nn.Conv2d(8, 18, 3, padding=1)},
            lambda n, x: n.c(x, n.o(x)).mean((2, 3)),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_layers_with_weights_are_found(kind: str, parts: dict[str, nn.Module], function: Callable[..., Tensor]):
    network = Body(function, **parts).eval()
    graph = capture(network, SPEC)
    assert {layer.name: layer.kind for layer in weight_layers(graph)}["c"] == kind
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(graph(images), network(images), rtol=1e-5, atol=1e-5)


def test_a_recurrent_layer_is_named_as_float_with_its_share():
    lstm = nn.LSTM(8, 6, batch_first=True)
    network = Body(lambda n, x: n.fc(n.lstm(tokens(x))[0][:, -1]), lstm=lstm, fc=nn.Linear(6, 4))
    graph = capture(network.eval(), SPEC)
    found = coverage(graph, {})
    weights = sum(parameter.numel() for parameter in lstm.parameters())
    quantized = 8 * 27 + 24
    assert found.parameters == pytest.approx(quantized / (quantized + weights))
    assert set(found.in_float) == {f"lstm.{name}" for name, _ in lstm.named_parameters()}
    assert all("lstm" in reason for reason in found.in_float.values())
    assert found.multiplications < 0.6


def test_a_parameter_that_something_else_reads_is_copied():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
            self.stem[1].running_mean.normal_()
            self.stem[1].running_var.uniform_(0.5, 2)
            self.table = nn.Embedding(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            features = torch.relu(self.stem(x)).mean((2, 3))
            code = self.table((features.mean(1).sigmoid() * 5).long())
            return F.linear(features + code + self.stem[0].bias * self.stem[1].weight, self.table.weight)

    torch.manual_seed(0)
    network = Tied()
    teacher = make_teacher("tied", network, SPEC)
    folded = fold_batch_norms(teacher.graph, teacher.reference)
    assert folded.error is not None and folded.error < 1e-5
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(folded.graph(images), network(images), rtol=1e-4, atol=1e-5)
    assert [layer.name for layer in weight_layers(folded.graph)] == ["stem.0", "table"]
