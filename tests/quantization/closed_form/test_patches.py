"""A layer as a matrix product: patches times the weight are what the layer computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.layers import weight_layers
from genie_cli.quantization.closed_form.patches import is_matrix_product, patches, spread_patches
from tests.support.networks import plain_input


class Flat(nn.Module):
    """A layer over one dimension, behind an image whose rows are put one after the other."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(2))


CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1)},
    {"kernel_size": 3, "dilation": 2, "padding": 2, "stride": 2},
    {"kernel_size": 3, "groups": 2, "padding": 1},
    {"kernel_size": 5, "groups": 4, "bias": False},
    {"kernel_size": (2, 3), "padding": "same"},
    {"kernel_size": 3, "padding": "valid"},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_patches_times_the_weight_are_a_convolution(options: dict[str, Any]):
    torch.manual_seed(0)
    check(nn.Conv2d(4, 8, **options))


@pytest.mark.parametrize(
    "options", [{"kernel_size": 3, "padding": 1, "stride": 2}, {"kernel_size": 4, "padding": "same"}]
)
def test_patches_times_the_weight_are_a_convolution_over_one_dimension(options: dict[str, Any]):
    torch.manual_seed(0)
    check(Flat(nn.Conv1d(4, 6, **options)))


def test_patches_times_the_weight_are_a_linear_layer():
    torch.manual_seed(0)
    check(Flat(nn.Linear(63, 5)))


def check(network: nn.Module) -> None:
    """The layer's own output against the product of its patches."""
    graph = capture(network.eval(), plain_input(4, (7, 9)))
    (layer,) = weight_layers(graph)
    assert is_matrix_product(layer)
    x = torch.randn(3, 4, 7, 9)
    own = next(module for module in network.modules() if hasattr(module, "weight"))
    weight: Tensor = own.weight
    found = patches(layer, x if weight.dim() == 4 else x.flatten(2), tuple(weight.shape))
    products = torch.einsum("bpgk,gok->bpgo", found, weight.view(layer.groups, len(weight) // layer.groups, -1))
    products = products.flatten(2)
    if own.bias is not None:
        products = products + own.bias
    output = network(x)
    wanted = output.flatten(0, -2).view(3, -1, len(weight)) if layer.kind == "linear" else output.flatten(2).mT
    torch.testing.assert_close(products, wanted, rtol=1e-4, atol=1e-5)


def test_a_transposed_convolution_is_none():
    (layer,) = weight_layers(capture(nn.ConvTranspose2d(4, 8, 3), plain_input(4, 8)))
    assert not is_matrix_product(layer)


@pytest.mark.parametrize("per_image", [1, 5, 30, 63])
@pytest.mark.parametrize(
    "network",
    [nn.Conv2d(4, 8, (3, 2), padding=1), nn.Conv2d(4, 8, 3, 2), Flat(nn.Conv1d(4, 6, 3, 2)), Flat(nn.Linear(63, 5))],
    ids=["conv2d", "strided", "conv1d", "linear"],
)
def test_few_patches_of_an_image_are_spread_over_it_and_all_are_seen_in_the_end(network: nn.Module, per_image: int):
    (layer,) = weight_layers(capture(network.eval(), plain_input(4, (7, 9))))
    weight: Tensor = next(module.weight for module in network.modules() if hasattr(module, "weight"))
    image = torch.randn(1, 4, 7, 9)
    image = image if weight.dim() == 4 else image.flatten(2)
    every = patches(layer, image, tuple(weight.shape))[0]
    seen = [spread_patches(layer, image, tuple(weight.shape), per_image, first) for first in range(100)]
    assert all(1 <= len(own) <= per_image for own in seen)
    found = {tuple(patch.flatten().tolist()) for own in seen for patch in own}
    assert found == {tuple(patch.flatten().tolist()) for patch in every}
    together = spread_patches(layer, image.expand(3, *image.shape[1:]), tuple(weight.shape), per_image, 4)
    assert torch.equal(together, torch.cat(seen[4:7]))
