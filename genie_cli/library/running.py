"""Around a stage that the library runs: one process, and modes and settings of the caller's that come back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from genie_cli.config import Stage
from genie_cli.runtime.device import resolve_device
from genie_cli.runtime.distribution import SOLO
from genie_cli.runtime.modes import modes_of_commands
from genie_cli.runtime.progress import Reporter, silent
from genie_cli.runtime.settings import configure_process, settings_restored
from genie_cli.stages.run import Run


@contextmanager
def running(config: Stage, report: Reporter | None) -> Iterator[Run]:
    """A run in this process alone. PyTorch's modes, settings and random numbers are the caller's again behind it.

    Args:
        config: device, and how it computes.
        report: receives notes and progress; None: nobody does.

    Raises:
        UsageError: unknown device.
        DeviceError: CUDA asked for and absent, or memory that runs out.
    """
    device = resolve_device(config.device)
    devices = [device] if device.type == "cuda" else []
    with modes_of_commands(), settings_restored(), torch.random.fork_rng(devices):
        configure_process(device, config.deterministic)
        run = Run(device, SOLO, silent if report is None else report)
        with run.shortage_explained():
            yield run
