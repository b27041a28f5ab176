"""Settings of the process."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from genie_cli.errors import UsageError
from genie_cli.runtime import settings
from genie_cli.runtime.settings import configure_process, nondeterminism_explained, release_freed_memory


def test_a_refused_operation_is_the_users_choice():
    text = "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set 'torch.use_...'"
    wanted = r"needs adaptive_avg_pool2d_backward_cuda.*--no-deterministic"
    with pytest.raises(UsageError, match=wanted), nondeterminism_explained():
        raise RuntimeError(text)


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match=r"^a defect$"), nondeterminism_explained():
        raise RuntimeError("a defect")


def test_float32_is_float32_and_a_cpu_needs_no_deterministic_mode(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    configure_process(torch.device("cpu"), deterministic=True)
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert not torch.are_deterministic_algorithms_enabled()
    release_freed_memory()  # does nothing where the C library has no such call


@pytest.fixture
def cublas(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """What CUDA is told is taken back; the environment says nothing of cuBLAS."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    fills = torch.utils.deterministic.fill_uninitialized_memory
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    yield monkeypatch
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fills


def test_deterministic_cuda(cublas: pytest.MonkeyPatch):
    configure_process(torch.device("cuda"), deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    cublas.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    configure_process(torch.device("cuda"), deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # the user's own


def test_fast_cuda(cublas: pytest.MonkeyPatch):
    configure_process(torch.device("cuda"), deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


# --- the C library


@pytest.mark.parametrize("newest", [True, False])
def test_freed_memory_is_kept_and_given_back_when_asked(monkeypatch: pytest.MonkeyPatch, newest: bool):
    calls: list[tuple[int, ...]] = []

    def mallopt(option: int, value: int) -> int:
        calls.append((option, value))
        return int(newest or value <= 32 << 20 or option != -3)

    libc = SimpleNamespace(mallopt=mallopt, malloc_trim=lambda kept: calls.append((kept,)))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(settings, "sys", SimpleNamespace(platform="linux"))
    configure_process(torch.device("cpu"), deterministic=True)
    older = [] if newest else [(-3, 32 << 20)]
    assert calls == [(-3, 1 << 30), *older, (-1, 2**31 - 1)]
    calls.clear()
    release_freed_memory()
    assert calls == [(0,)]


@pytest.mark.parametrize("missing", [AttributeError, OSError])
def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch, missing: type[Exception]):
    asked: list[Any] = []

    def load(name: Any) -> Any:
        asked.append(name)
        if missing is OSError:
            raise OSError("no such library")
        return SimpleNamespace()

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(settings, "sys", SimpleNamespace(platform="linux"))
    configure_process(torch.device("cpu"), deterministic=True)
    release_freed_memory()
    assert asked == [None, None]


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch, platform: str):
    asked: list[Any] = []
    monkeypatch.setattr(ctypes, "CDLL", asked.append)
    monkeypatch.setattr(settings, "sys", SimpleNamespace(platform=platform))
    configure_process(torch.device("cpu"), deterministic=True)
    release_freed_memory()
    assert asked == []
