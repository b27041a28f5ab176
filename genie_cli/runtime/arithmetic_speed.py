"""The speed of a CPU in float32 and in bfloat16, measured on a few layers in the passes of a stage."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from genie_cli.runtime.user_cache import keep, recall

Passes = Literal["synthesize", "quantize", "evaluate"]
"""The stage whose passes are measured.

synthesize: forward and backward to the input; weights are frozen, batch statistics are measured.
quantize: forward and backward to input and weight; weights are made anew in float32, and inputs are fake-quantized.
evaluate: forward alone."""
VERSION = 1
"""Raised whenever what is measured changes."""
_SECONDS = 0.3
"""Time for one layer; it takes less where the figures agree before."""
_CALLS, _AGREEING, _CLOSE = 20, 5, 1.1
"""Calls from which on the fastest ones, where so many lie within a tenth, show that nothing disturbs."""
_KIND = "arithmetic"
_VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
"""Variables of the environment that take instructions away from PyTorch's and oneDNN's kernels."""


class _Layer(NamedTuple):
    """A 3x3 convolution with padding 1 on square maps; each takes about as long as the others."""

    batch: int
    channels: int
    side: int
    groups: int = 1


_LAYERS = (
    _Layer(16, 16, 32),  # ResNets for small images, first and last stage
    _Layer(16, 64, 8),
    _Layer(1, 64, 56),  # ResNets for large images, first and third stage
    _Layer(1, 256, 14),
    _Layer(4, 96, 28, groups=96),  # depthwise, of MobileNets
)


class Seconds(NamedTuple):
    """Seconds that the layers take, the best of several rounds."""

    float32: float
    bfloat16: float

    @property
    def gain(self) -> float:
        """Share by which bfloat16 is faster: 0.5 where it takes two thirds of the time, below 0 where it is slower."""
        return self.float32 / self.bfloat16 - 1


def cpu_seconds(passes: Passes) -> Seconds:
    """The figures of this CPU: kept in the user's cache, else measured, which takes a second or two.

    They are kept under all that they depend on: the processor and its instructions, PyTorch's version, the number of
    threads, and the environment variables that limit instructions. So the same command takes the same arithmetic again.
    """
    about = {"version": VERSION, "passes": passes, **_surroundings()}
    found = _checked(recall(_KIND, about))
    if found is None:
        found = measure(passes)
        keep(_KIND, about, found._asdict())
    return found


def measure(passes: Passes) -> Seconds:
    """Measure anew, in float32 and bfloat16 by turns.

    Each layer counts with its fastest calls, as other processes can make a call slower, and none can make it faster.
    Threads that wait for each other may never be undisturbed on a busy machine: then it is the processor time of one
    thread.
    """
    found = _measured(passes, time.perf_counter, gives_up=True)
    if found is not None:
        return found
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = _measured(passes, time.thread_time, gives_up=False)
    finally:
        torch.set_num_threads(threads)
    assert found is not None
    return found


def _measured(passes: Passes, clock: Callable[[], float], gives_up: bool) -> Seconds | None:
    """The figures with the threads of now; where they are disturbed, None (`gives_up`) or the best there are."""
    totals = [0.0, 0.0]
    for layer in _LAYERS:
        steps = [_step(layer, passes, dtype) for dtype in (torch.float32, torch.bfloat16)]
        for step in steps:
            step()  # the first call makes kernels
        times: list[list[float]] = [[], []]
        end = time.perf_counter() + _SECONDS
        while not (is_steady := all(map(_agree, times))) and (time.perf_counter() < end or not times[0]):
            for own, step in zip(times, steps, strict=True):
                start = clock()
                step()
                own.append(clock() - start)
        if gives_up and not is_steady:
            return None
        totals = [total + min(own) for total, own in zip(totals, times, strict=True)]
    return Seconds(*totals)


def _agree(times: list[float]) -> bool:
    fastest = sorted(times)[:_AGREEING]
    return len(times) >= _CALLS and fastest[-1] <= _CLOSE * fastest[0]


def _checked(kept: Any) -> Seconds | None:
    """The figures of a cache file; None for anything else."""
    try:
        found = Seconds(float(kept["float32"]), float(kept["bfloat16"]))
    except (TypeError, ValueError, KeyError, OverflowError):
        return None
    return found if all(0 < seconds < math.inf for seconds in found) else None


def _surroundings() -> dict[str, Any]:
    return {
        "cpu": _cpu_facts(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        **{name: os.environ.get(name) for name in _VARIABLES},
    }


def _cpu_facts() -> list[str]:
    """Name and flags of the processor, where the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return [platform.machine(), platform.processor()]
    names = ("model name", "flags", "CPU implementer", "CPU part", "Features")
    return [line for line in lines[: lines.index("")] if line.startswith(names)] if "" in lines else lines


def _step(layer: _Layer, passes: Passes, dtype: torch.dtype) -> Callable[[], object]:
    """The passes through one layer, a normalisation or a quantizer, and a ReLU, as a function without arguments."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(layer.batch, layer.channels, layer.side, layer.side, generator=draws)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(layer.channels, layer.channels // layer.groups, 3, 3, generator=draws) / 10

    def convolve(inputs: Tensor, own: Tensor) -> Tensor:
        return F.conv2d(inputs, own, padding=1, groups=layer.groups)

    if passes == "synthesize":
        frozen = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        ones, zeros = torch.ones(layer.channels), torch.zeros(layer.channels)

        def synthesize() -> object:
            inputs = x.detach().requires_grad_()
            output = convolve(inputs, frozen)
            torch.ops.aten.batch_norm_update_stats(output.detach(), zeros.clone(), zeros.clone(), 0.0)
            output = torch.batch_norm(output, ones, zeros, zeros, ones, False, 0.0, 0.0, False).relu_()
            return torch.autograd.grad(output, inputs, output.detach())

        return synthesize
    if passes == "quantize":

        def quantize() -> object:
            exact = x.float()
            codes = (exact * 4).round_().clamp_(-8, 7)
            inputs, own = (codes / 4).to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
            output = convolve(inputs, own).relu()
            grad, own_grad = torch.autograd.grad(output, (inputs, own), output.detach())
            return grad.float().mul_(codes).to(dtype), own_grad.float()

        return quantize

    def evaluate() -> object:
        with torch.no_grad():
            return convolve(x, weight.to(dtype)).relu_()

    return evaluate
