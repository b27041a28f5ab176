"""Which device and which arithmetic a stage runs on."""

from __future__ import annotations

import pytest
import torch

from genie_cli.errors import DeviceError, UsageError
from genie_cli.runtime.device import resolve_device, resolve_dtype
from tests.support import CPU


def with_cuda(monkeypatch: pytest.MonkeyPatch, count: int, capability: tuple[int, int] = (9, 0)) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


def test_auto_prefers_cuda(monkeypatch: pytest.MonkeyPatch):
    with_cuda(monkeypatch, 0)
    assert resolve_device("auto") == CPU
    with_cuda(monkeypatch, 1)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cpu") == CPU


def test_named_cuda_devices(monkeypatch: pytest.MonkeyPatch):
    with_cuda(monkeypatch, 2)
    assert resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match=r"cuda:2.*2 CUDA device"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_without_a_device_is_an_error_that_names_a_way_out(monkeypatch: pytest.MonkeyPatch, name: str):
    with_cuda(monkeypatch, 0)
    with pytest.raises(DeviceError, match=r"no CUDA device.*--device cpu"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "cpu:0", "cpu:", "cuda:", "cuda:x", "cuda:-1", "mps", "auto:0"])
def test_other_names_are_usage_errors(monkeypatch: pytest.MonkeyPatch, name: str):
    with_cuda(monkeypatch, 1)
    with pytest.raises(UsageError, match="use auto, cpu, cuda or cuda:INDEX"):
        resolve_device(name)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_named_precision_is_taken(device: str):
    assert resolve_dtype("fp32", torch.device(device)) == torch.float32
    assert resolve_dtype("bf16", torch.device(device)) == torch.bfloat16


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)], ids=str)
def test_auto_precision_on_cuda(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype):
    with_cuda(monkeypatch, 1, capability)
    assert resolve_dtype("auto", torch.device("cuda")) == dtype


@pytest.mark.parametrize(
    ("amx", "avx512", "dtype"),
    [(True, False, torch.bfloat16), (False, True, torch.bfloat16), (False, False, torch.float32)],
)
def test_auto_precision_on_cpu(monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, dtype: torch.dtype):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    assert resolve_dtype("auto", CPU) == dtype


def test_auto_precision_without_the_private_probes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert resolve_dtype("auto", CPU) == torch.float32
