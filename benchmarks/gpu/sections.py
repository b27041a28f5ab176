"""The sections, in their order: what is cheap and certain first, what takes all the time that is left last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpu.accuracy import accuracy
from gpu.bench import Bench
from gpu.fusion import fusion
from gpu.machine import cuda_tests, environment, two_ranks
from gpu.primitives import primitives
from gpu.recording import recording
from gpu.resuming import resuming
from gpu.shortage import shortage
from gpu.speed import speed
from gpu.stores import stores


@dataclass(frozen=True)
class Section:
    """A part of the check.

    Attributes:
        name: what it is called on the command line.
        seconds: its deadline.
        run: what it does.
    """

    name: str
    seconds: float
    run: Callable[[Bench], None]


SECTIONS = (
    Section("env", 25, environment),
    Section("tests", 70, cuda_tests),
    Section("primitives", 30, primitives),
    Section("graphs", 80, recording),
    Section("resume", 25, resuming),
    Section("stores", 20, stores),
    Section("torchrun", 45, two_ranks),
    Section("shortage", 50, shortage),
    Section("speed", 90, speed),
    Section("accuracy", 150, accuracy),
    Section("compile", 60, fusion),
)
