"""Errors and energies of stored activations against NumPy, by one process and by several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from genie_cli.quantization.activations.errors import mean_energies, relative, relative_errors
from genie_cli.quantization.activations.pool import ActivationPool
from genie_cli.quantization.activations.store import ActivationStore
from genie_cli.runtime.distribution import SOLO
from genie_cli.runtime.progress import silent
from tests.support import CPU

SHAPES = [(35, 3, 4, 5), (35, 7), (35,), (35, 2, 6)]
NOBODY = torch.empty(0, dtype=torch.int64)


def values(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * (seed + 1)


@pytest.fixture
def pool() -> Iterator[ActivationPool]:
    with ActivationPool(CPU, 0, 1 << 30, silent) as made:
        yield made


def stored(pool: ActivationPool, tensor: Tensor) -> ActivationStore:
    store = pool.allocate(tuple(tensor.shape))
    store.write(0, tensor)
    return store


@dataclass
class Other:
    """Processes whose sums are added to those of this one."""

    sums: Tensor

    def sum_(self, own: Tensor) -> Tensor:
        return own + self.sums


def test_errors_are_summed_over_outputs_each_relative_to_its_own(pool: ActivationPool):
    found, wanted = ([values(shape, i + first) for i, shape in enumerate(SHAPES)] for first in (0, 10))
    held_out = torch.tensor([3, 20, 34])
    errors = relative_errors(
        [stored(pool, tensor) for tensor in found], [stored(pool, tensor) for tensor in wanted], held_out, SOLO
    )
    trained = np.setdiff1d(np.arange(35), held_out.numpy())
    for error, rows in zip(errors, (trained, held_out.numpy()), strict=True):
        pairs = [(a.double().numpy()[rows], b.double().numpy()[rows]) for a, b in zip(found, wanted, strict=True)]
        assert error == pytest.approx(sum(((a - b) ** 2).sum() / (b**2).sum() for a, b in pairs), rel=1e-6)


def test_without_held_out_rows_there_is_no_second_error(pool: ActivationPool):
    store = stored(pool, values((35, 3), 0))
    assert relative_errors([store], [store], NOBODY, SOLO) == (0.0, None)


def test_a_target_without_norm_has_no_share():
    assert relative(torch.tensor([[1.0, 0.0], [1.0, 4.0]], dtype=torch.float64)) == [0.0, 0.25]


def test_energies_sum_over_channels_and_average_over_the_rest(pool: ActivationPool):
    tensors = [values(shape, i) for i, shape in enumerate(SHAPES)]
    found = mean_energies([stored(pool, tensor) for tensor in tensors], SOLO)
    for energy, tensor in zip(found, tensors, strict=True):
        channels = tensor.shape[1] if tensor.dim() > 1 else 1
        assert energy == pytest.approx(channels * (tensor.double().numpy() ** 2).mean(), rel=1e-6)


def test_energies_are_those_of_the_rows_of_all_processes(pool: ActivationPool):
    tensor = values((35, 3, 4), 5)
    own, others = stored(pool, tensor[:20]), tensor[20:].double()
    told = Other(torch.tensor([[float(others.square().sum()), 15 * 4.0]], dtype=torch.float64))
    together = mean_energies([own], told)  # type: ignore[arg-type]
    assert together == pytest.approx(mean_energies([stored(pool, tensor)], SOLO), rel=1e-6)
