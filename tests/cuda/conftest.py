"""What the tests of CUDA code share: a GPU, real or pretended, and networks that were captured before it is there."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from genie_cli.runtime.settings import configure_process
from tests.cuda.runs import capture_networks
from tests.support.pretended_gpu import GPU, PretendedGpu, settings_kept


@pytest.fixture(scope="package", autouse=True)
def old_objects_are_left_alone() -> Iterator[None]:
    """Each recording lets Python's collector go through all objects, and PyTorch has many that concern no test."""
    capture_networks()
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "unfreeze", lambda: None)
        yield
    gc.unfreeze()


@pytest.fixture(params=[pytest.param("real", marks=pytest.mark.cuda), "pretended"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """A GPU as the commands set it up: before CUDA starts, with results that repeat."""
    is_real = request.param == "real"
    if is_real and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    with settings_kept(), nullcontext() if is_real else PretendedGpu():
        configure_process(GPU, deterministic=True)
        yield GPU
