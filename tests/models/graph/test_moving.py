"""Batch norms that the layer before them cannot take in: moved into the layers behind them where exact, else affine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from genie_cli.config import InputSpec
from genie_cli.models.graph import folding
from genie_cli.models.graph.affine_map import affine_maps
from genie_cli.models.graph.batch_norm import batch_norm_sites
from genie_cli.models.graph.coverage import coverage
from genie_cli.models.graph.folding import FoldedGraph, fold_batch_norms
from genie_cli.models.graph.tensors import get_tensor, named_tensors
from genie_cli.models.teacher import make_teacher

SPEC = InputSpec(size=8)


class Net(nn.Module):
    """A stem and a ReLU, a batch norm that follows no layer, and what reads it."""

    def __init__(self, body: Callable[[Net, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self, self.norm(F.relu(self.stem(x))))
        return y if y.dim() == 2 else y.mean((2, 3))


def randomized(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor in (module.weight, module.bias, module.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return network.eval()


@torch.no_grad()
def folded(network: nn.Module) -> FoldedGraph:
    """The folded graph, which computes what the network does, at another batch size too."""
    torch.manual_seed(0)
    teacher = make_teacher("network", randomized(network), SPEC)
    found = fold_batch_norms(teacher.graph, teacher.reference)
    assert found.error is not None and found.error < 1e-6
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.graph(images), network(images), rtol=1e-4, atol=1e-5)
    assert not batch_norm_sites(found.graph)
    return found


def pooled(net: Net, x: Tensor) -> Tensor:
    return net.fc(F.avg_pool2d(x[:, :, 1:, :6], 2).flatten(1))


MOVES: dict[str, tuple[Callable[[], Net], tuple[str, ...]]] = {
    "unpadded": (lambda: Net(lambda net, x: net.conv(x), conv=nn.Conv2d(4, 6, 3, stride=2, bias=False)), ("conv",)),
    "1x1": (lambda: Net(lambda net, x: net.conv(x), conv=nn.Conv2d(4, 6, 1)), ("conv",)),
    "1x1 same": (lambda: Net(lambda net, x: net.conv(x), conv=nn.Conv2d(4, 6, 1, padding="same")), ("conv",)),
    "valid": (lambda: Net(lambda net, x: net.conv(x), conv=nn.Conv2d(4, 6, 3, padding="valid")), ("conv",)),
    "grouped": (lambda: Net(lambda net, x: net.conv(x), conv=nn.Conv2d(4, 6, 3, groups=2)), ("conv",)),
    "depthwise": (lambda: Net(lambda net, x: net.conv(x), conv=nn.Conv2d(4, 8, 3, groups=4, bias=False)), ("conv",)),
    "linear behind an average": (lambda: Net(lambda net, x: net.fc(x.mean((2, 3))), fc=nn.Linear(4, 5)), ("fc",)),
    "linear behind a flattening": (lambda: Net(lambda net, x: net.fc(x.flatten(1)), fc=nn.Linear(256, 5)), ("fc",)),
    "slices and averages": (lambda: Net(pooled, fc=nn.Linear(36, 5, bias=False)), ("fc",)),
    "adaptive average": (
        lambda: Net(lambda net, x: net.fc(F.adaptive_avg_pool2d(x, 2).flatten(1)), fc=nn.Linear(16, 5)),
        ("fc",),
    ),
    "two readers": (
        lambda: Net(lambda net, x: net.a(x) + net.b(x), a=nn.Conv2d(4, 6, 3), b=nn.Conv2d(4, 6, 3, bias=False)),
        ("a", "b"),
    ),
    "a layer that folds its own": (
        lambda: Net(lambda net, x: F.relu(net.bn(net.conv(x))), conv=nn.Conv2d(4, 6, 3), bn=nn.BatchNorm2d(6)),
        ("conv",),
    ),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_batch_norm_moves_into_the_layers_that_read_it(name: str) -> None:
    build, layers = MOVES[name]
    found = folded(build())
    assert {norm: set(into) for norm, into in found.moved.items()} == {"norm": set(layers)}
    assert not found.unfolded and not affine_maps(found.graph)
    assert not set(found.multipliers) & set(layers)  # one number per row no longer leads from the checkpoint's weight
    assert not [key for key in named_tensors(found.graph) if key.startswith("norm.")]


STAYS: dict[str, tuple[Callable[[], Net], str]] = {
    "padded": (
        lambda: Net(lambda net, x: net.conv(x), conv=nn.Conv2d(4, 6, 3, padding=1)),
        "conv reads it with a border of zeros",
    ),
    "padded 1x1": (
        lambda: Net(lambda net, x: net.conv(x), conv=nn.Conv2d(4, 6, 1, padding=1)),
        "conv reads it with a border of zeros",
    ),
    "same": (
        lambda: Net(lambda net, x: net.conv(x), conv=nn.Conv2d(4, 6, 3, padding="same")),
        "conv reads it with a border of zeros",
    ),
    "zeros around": (
        lambda: Net(lambda net, x: net.conv(F.pad(x, (1, 1, 1, 1))), conv=nn.Conv2d(4, 6, 3)),
        "pad reads",
    ),
    "relu": (lambda: Net(lambda net, x: net.conv(F.relu(x)), conv=nn.Conv2d(4, 6, 3)), "relu reads it"),
    "maximum": (lambda: Net(lambda net, x: net.conv(F.max_pool2d(x, 2)), conv=nn.Conv2d(4, 6, 3)), "max_pool2d reads"),
    "average with zeros": (
        lambda: Net(lambda net, x: net.conv(F.avg_pool2d(x, 3, 2, 1)), conv=nn.Conv2d(4, 6, 3)),
        "avg_pool2d reads it",
    ),
    "average by another number": (
        lambda: Net(lambda net, x: net.conv(F.avg_pool2d(x, 2, divisor_override=3)), conv=nn.Conv2d(4, 6, 3)),
        "avg_pool2d reads it",
    ),
    "one reader of two": (lambda: Net(lambda net, x: net.conv(x) + x, conv=nn.Conv2d(4, 4, 1)), "add reads it"),
    "transposed": (
        lambda: Net(lambda net, x: net.conv(x), conv=nn.ConvTranspose2d(4, 6, 2, 2)),
        "conv_transpose2d conv reads it",
    ),
    "columns": (lambda: Net(lambda net, x: net.fc(x).mean((2, 3)), fc=nn.Linear(8, 5)), "not the input channels of fc"),
    "output": (lambda: Net(lambda net, x: x.mean((2, 3))), "it is the network's output"),
}


@pytest.mark.parametrize("name", STAYS)
def test_a_batch_norm_that_stays_is_an_affine_map(name: str) -> None:
    build, reason = STAYS[name]
    network = build()
    found = folded(network)
    assert list(found.unfolded) == ["norm"] and reason in found.unfolded["norm"]
    assert not found.moved
    (affine,) = affine_maps(found.graph)
    norm = network.norm
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    wanted = (scale, norm.bias.double() - scale * norm.running_mean.double())
    assert affine.num_channels == 4
    for key, value in zip(affine.keys, wanted, strict=True):
        assert torch.equal(get_tensor(found.graph, key), value.float())
    tensors = named_tensors(found.graph)
    assert set(affine.keys) == {key for key in tensors if "norm" in key}


def test_a_chain_of_batch_norms_moves_as_one() -> None:
    network = Net(lambda net, x: net.conv(net.more(x)), conv=nn.Conv2d(4, 6, 3), more=nn.BatchNorm2d(4))
    assert folded(network).moved == {"norm": ("conv",), "more": ("conv",)}


def test_a_batch_norm_on_the_images_moves() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert folded(network).moved == {"0": ("1",)}


def test_an_affine_map_counts_as_a_scale_per_channel() -> None:
    found = folded(STAYS["relu"][0]())
    share = coverage(found.graph, found.unfolded)
    quantized = 3 * 4 + 4 * 6 * 9
    assert share.parameters == pytest.approx(quantized / (quantized + 4))
    assert list(share.batch_norms) == ["norm"] and not share.in_float


def test_a_move_that_does_not_hold_is_undone_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    move = folding.move_into_readers

    def broken(graph: fx.GraphModule, site, readers) -> None:
        move(graph, site, readers)
        if site.name == "norm":
            key = readers[0].layer.weight_key
            folding.set_tensor(graph, key, get_tensor(graph, key) * 1.5)

    network = Net(
        lambda net, x: net.fc(net.more(F.relu(net.conv(x))).mean((2, 3))),
        conv=nn.Conv2d(4, 6, 3),
        more=nn.BatchNorm2d(6),
        fc=nn.Linear(6, 2),
    )
    monkeypatch.setattr(folding, "move_into_readers", broken)
    found = folded(network)
    assert list(found.unfolded) == ["norm"] and "moves the network's output" in found.unfolded["norm"]
    assert found.moved == {"more": ("fc",)}
    assert len(affine_maps(found.graph)) == 1
