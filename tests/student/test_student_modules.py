"""The quantizers of a finished student: what they compute, and that they keep it through storing and moving."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genie_cli.student.formats import NumberFormat, activation_format, weight_format
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight


def integer_weight(bits: int = 4) -> IntegerWeight:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (5, 3, 2, 2), generator=generator)
    codes[0, 0, 0, 0], codes[1, 0, 0, 0] = 0, 2**bits - 1
    scale = torch.rand(5, 1, generator=generator) * 0.1 + 0.01
    zero_point = torch.randint(0, 2**bits, (5, 1), generator=generator)
    return IntegerWeight(codes, scale, zero_point, weight_format(bits))


@pytest.mark.parametrize("bits", range(2, 9))
def test_integer_weight_is_scale_times_code_minus_zero_point(bits: int) -> None:
    module = integer_weight(bits)
    codes, zero_point = module.codes.numpy().astype(np.int64), module.zero_point.numpy().astype(np.int64)
    expected = module.scale.numpy().reshape(-1, 1, 1, 1) * (codes - zero_point.reshape(-1, 1, 1, 1)).astype(np.float32)
    assert module().dtype == torch.float32
    np.testing.assert_array_equal(module().numpy(), expected)


@pytest.mark.parametrize("format", [weight_format(9), weight_format(9, "symmetric")], ids=str)
def test_codes_of_more_than_8_bits_are_refused(format: NumberFormat) -> None:
    with pytest.raises(AssertionError, match="do not fit into 8 bits"):
        IntegerWeight(torch.zeros(5, 3), torch.ones(5, 1), torch.zeros(5, 1), format)


def test_nearest_codes_of_a_weight() -> None:
    weight = torch.tensor([[-1.5, -0.5, 0.6, 9.0], [0.0, 1.1, 2.0, 7.0]])
    scale, zero_point = torch.tensor([[1.0], [0.5]]), torch.tensor([[2.0], [0.0]])
    module = IntegerWeight.nearest(weight, scale, zero_point, weight_format(3))
    assert module.codes.tolist() == [[0, 2, 3, 7], [0, 2, 4, 7]]
    assert module().tolist() == [[-2.0, 0.0, 1.0, 5.0], [0.0, 1.0, 2.0, 3.5]]
    assert module.format == weight_format(3)


def test_integer_weight_is_stored_as_integers_and_not_trained() -> None:
    module = integer_weight(8)
    types = {key: value.dtype for key, value in module.state_dict().items()}
    assert types == {"codes": torch.uint8, "scale": torch.float32, "zero_point": torch.int32}
    assert not list(module.parameters())
    other = IntegerWeight(torch.zeros(5, 3, 2, 2), torch.ones(5, 1), torch.zeros(5, 1), weight_format(8))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(), module())
    assert module().max() > 0 > module().min()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_activation_quantizer_is_the_oracle_s(bits: int, signed: bool) -> None:
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 4
    step_size = np.float32(1) / np.float32(3)  # no float64 behind it
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    expected = np.clip(np.rint(x.numpy() / step_size), low, high) * step_size
    np.testing.assert_array_equal(ActivationQuantizer(1 / 3, activation_format(bits, signed))(x).numpy(), expected)


def test_activation_quantizer_keeps_shape_and_dtype() -> None:
    quantizer = ActivationQuantizer(0.25, activation_format(4, False))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.tensor([[-1.0, 0.3, 2.1, 100.0]], dtype=dtype)
        y = quantizer(x)
        assert y.dtype == dtype
        assert y.tolist() == [[0.0, 0.25, 2.0, 3.75]]


def test_activation_quantizer_restores_its_step_size() -> None:
    quantizer, other = (
        ActivationQuantizer(0.3, activation_format(4, True)),
        ActivationQuantizer(1.0, activation_format(4, True)),
    )
    other.load_state_dict(quantizer.state_dict())
    assert list(quantizer.state_dict()) == ["step_size"]
    assert torch.equal(other(torch.linspace(-9, 9, 50)), quantizer(torch.linspace(-9, 9, 50)))


def test_names_in_a_printed_network() -> None:
    assert "(5, 3, 2, 2), uint4 per channel, axis 0, asymmetric" in str(integer_weight())
    assert "int2 per tensor, symmetric" in str(ActivationQuantizer(0.3, activation_format(2, True)))
