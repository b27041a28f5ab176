"""Stores of activations on a GPU, beside one and on the disk."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genie_cli.quantization.activations import store as stores
from genie_cli.quantization.activations.pool import ActivationPool
from genie_cli.runtime.progress import silent

PLENTY = 1 << 40


def pool_for(place: str, device: torch.device) -> ActivationPool:
    """A pool whose stores all lie in one place."""
    return ActivationPool(device, PLENTY * (place == "device"), PLENTY * (place == "host"), silent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("place", ["device", "host", "disk"])
@pytest.mark.parametrize("shape", [(40, 7), (40, 6, 5), (40, 6, 5, 4), (40, 3, 2, 5, 4)], ids=str)
def test_what_is_written_is_read(
    shape: tuple[int, ...], place: str, dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stores, "_CHUNK_BYTES", 1000)
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    with pool_for(place, device) as pool:
        store = pool.allocate(shape, dtype)
        assert store.place == place
        store.write(0, rows[:20].to(device))
        store.write(20, rows[20:].transpose(1, -1).contiguous().transpose(1, -1).to(device))  # in other strides
        store.write(3, rows[3:5])
        for seed in range(5):
            indices = torch.randint(0, 40, (32,), generator=torch.Generator().manual_seed(seed))
            got = store.gather(indices)
            assert got.is_cuda and torch.equal(got.cpu(), rows[indices])
            assert (got.movedim(1, -1) if got.dim() > 2 else got).is_contiguous()
            if place == "device":
                assert torch.equal(store.gather_on_device(indices.to(device)).cpu(), rows[indices])
        assert torch.equal(store.read(5, 40).cpu(), rows[5:])


def test_buffers_are_not_filled_while_a_busy_stream_still_copies(device: torch.device):
    """Copies wait behind long kernels; buffers that were filled too early would give wrong rows."""
    is_real = torch.cuda.get_device_name(device) != "a pretended GPU"
    width, side = (1 << 18, 4096) if is_real else (1 << 16, 16)
    rows = torch.arange(256.0).view(-1, 1).expand(256, width).contiguous()
    busy: Tensor = torch.rand(side, side, device=device)
    with pool_for("host", device) as pool:
        store = pool.allocate(tuple(rows.shape))
        store.write(0, rows)
        for seed in range(5):
            indices = torch.randint(0, 256, (96,), generator=torch.Generator().manual_seed(seed))
            for _ in range(20):
                busy = busy @ busy / busy.norm()
            assert torch.equal(store.gather(indices).cpu(), rows[indices])
