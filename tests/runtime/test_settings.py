"""Settings of the process."""

from __future__ import annotations

import pytest
import torch

from genie_cli.errors import UsageError
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
