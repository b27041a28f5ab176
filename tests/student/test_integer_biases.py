"""Biases as integer kernels add them."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from genie_cli.config import InputSpec
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.student.bit_plan import ActivationSite
from genie_cli.student.formats import activation_format, weight_format
from genie_cli.student.integer_biases import (
    LARGEST_BIAS,
    PAIR_LIMIT,
    bias_codes,
    bias_scale,
    centred_codes,
    integer_layers,
    spare_bits,
)
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight

INT8, INT16, INT32 = (np.iinfo(kind) for kind in (np.int8, np.int16, np.int32))


def integer_weight(bits: int, scale: Tensor, seed: int = 0) -> IntegerWeight:
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (len(scale), 3, 3, 3), generator=_draws(seed))
    return IntegerWeight(codes, scale.view(-1, 1), torch.zeros(len(scale), 1), weight_format(bits, "symmetric"))


def _draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    bits=st.integers(2, 8),
    activation_bits=st.integers(2, 8),
    is_signed=st.booleans(),
    seed=st.integers(0, 99),
    magnitude=st.floats(1e-6, 1e6),
)
def test_spare_bits_are_the_most_that_fit(
    bits: int, activation_bits: int, is_signed: bool, seed: int, magnitude: float
) -> None:
    weight = integer_weight(bits, torch.rand(4, generator=_draws(seed)) + 0.01, seed)
    source = ActivationQuantizer(0.05, activation_format(activation_bits, is_signed))
    bias = torch.randn(4, generator=_draws(seed)) * magnitude

    def fits(k: int) -> bool:
        codes = np.abs(weight.codes.numpy().astype(np.int64)).max() * 2**k
        sums = 2 * (2**activation_bits - 1) * codes
        product = weight.scale.numpy().astype(np.float64).ravel() * source.step_size.numpy().astype(np.float64)
        largest = np.abs(np.rint(bias.numpy() / product * 2**k)).max()
        return bool(codes <= INT8.max and sums <= INT16.max and largest <= LARGEST_BIAS)

    k = spare_bits(weight, source, bias)
    assert k == 0 or fits(k)
    assert not fits(k + 1)
    assert INT16.max == PAIR_LIMIT


def test_a_bias_has_the_nearest_code_of_its_channel() -> None:
    weight, bias = integer_weight(8, torch.tensor([0.5, 0.25])), torch.tensor([1.3, -0.7])
    scale = bias_scale(weight, ActivationQuantizer(0.5, activation_format(8, signed=False)), 1)
    assert scale.tolist() == [0.125, 0.0625]
    codes = bias_codes(bias, scale)
    assert codes is not None and codes.tolist() == [10, -11]
    assert bias_codes(torch.zeros(3), scale) is None
    assert bias_codes(torch.tensor([1e30, 0.0]), scale) is None


class Net(nn.Module):
    """Two convolutions with a pooling of maxima between them, which leaves values on their grid."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.second(torch.max_pool2d(self.first(x).relu(), 2))
        return pooled


def test_layers_of_a_network() -> None:
    """Biases lie on their grids; weights are changed only in a channel whose bias int32 does not hold."""
    torch.manual_seed(0)
    folded = fold_batch_norms(capture(Net(), InputSpec(size=12))).graph
    weights = {
        "first": integer_weight(8, torch.full((4,), 0.01)),
        "second": integer_weight(8, torch.tensor([0.01, 1e-14, 0.01, 0.01])),
    }
    (relu,) = (node.name for node in folded.graph.nodes if node.target is torch.ops.aten.relu.default)
    sites = (ActivationSite("images", "x", 8), ActivationSite("relu", relu, 8))
    format = activation_format(8, signed=False)
    activations = {"images": ActivationQuantizer(0.02, format), "relu": ActivationQuantizer(0.03, format)}
    found = integer_layers(folded, sites, weights, activations)
    assert found.biases.keys() == {"first.bias", "second.bias"}
    assert found.weights["first"] is weights["first"]
    second = found.weights["second"]
    rest = [0, 2, 3]
    assert torch.equal(second()[rest], weights["second"]()[rest])
    assert second()[1].abs().max() < 1e-8
    for layer, step_size in (("first", 0.02), ("second", 0.03)):
        source = ActivationQuantizer(step_size, format)
        bias, rounded = get_tensor(folded, f"{layer}.bias"), found.biases[f"{layer}.bias"]
        k = spare_bits(found.weights[layer], source, rounded)
        product = found.weights[layer].scale.double().flatten() * step_size / 2**k
        codes = rounded.double() / product
        torch.testing.assert_close(codes, codes.round(), rtol=1e-6, atol=1e-3)
        assert codes.abs().max() <= INT32.max
        assert ((rounded - bias).abs() <= product * 0.501 + 1e-7).all()
    assert int(centred_codes(second)[1].abs().max()) == 0
