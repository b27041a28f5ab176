"""The reconstruction loss against NumPy: value and gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from genie_cli.quantization.squared_error import squared_error


def values(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squared_error(dtype: torch.dtype):
    output = values(70, 16, 16, 16).to(dtype).requires_grad_()
    target = values(70, 16, 16, 16, seed=1)
    loss = squared_error(output, target)
    (3 * loss).backward()
    difference = output.detach().double().numpy() - target.double().numpy()
    places = 70 * 16 * 16
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((difference**2).sum() / places, rel=1e-5)
    assert output.grad is not None and output.grad.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 2**-7  # rounded twice
    np.testing.assert_allclose(output.grad.double().numpy(), 6 * difference / places, rtol=tolerance, atol=1e-9)


def test_squared_error_of_a_matrix_without_gradient():
    output, target = values(4, 3, 1, 1).flatten(1), values(4, 3, 1, 1, seed=1).flatten(1)
    assert squared_error(output, target).item() == pytest.approx(((output - target) ** 2).sum().item() / 4)
