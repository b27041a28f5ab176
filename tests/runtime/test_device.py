"""The device that a stage runs on."""

from __future__ import annotations

import pytest
import torch

from genie_cli.errors import DeviceError, UsageError
from genie_cli.runtime.device import resolve_device
from tests.support import CPU


def with_cuda(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


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
