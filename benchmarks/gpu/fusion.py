"""`torch.compile` of what stands between two convolutions of a synthesis step: what it gains, and what it takes."""

from __future__ import annotations

import os
import shutil
import time

import torch
from torch import Tensor
from torch._inductor import config
from torch.nn import functional as F

from genie_cli.synthesis.statistics import _affine
from gpu.bench import Bench, SkippedError
from gpu.timing import milliseconds


def fusion(bench: Bench) -> None:
    """Batch norm and ReLU forward, their gradients and that of the statistics loss, of ResNet-18's first blocks."""
    if not (os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")):
        raise SkippedError("needs a C compiler")
    shape = bench.size((128, 64, 56, 56), (2, 4, 8, 8))
    x, gradient = (
        torch.randn(shape, device=bench.device).to(bench.dtype, memory_format=torch.channels_last) for _ in range(2)
    )
    channels = [torch.rand(shape[1], device=bench.device) for _ in range(4)]
    with torch.no_grad():
        took = milliseconds(bench, lambda: _in_kernels(x, gradient, *channels))
        bench.figure("eager, ms", took)
        bench.figure("eager, GB/s if all were read and written once", 4 * x.nbytes / took / 1e6)
        compiled = torch.compile(_in_formulas, dynamic=False)
        started = time.perf_counter()
        with config.patch(force_disable_caches=True):
            fused = compiled(x, gradient, *channels)
        bench.synchronize()
        bench.figure("compiling, s", time.perf_counter() - started)
        took = milliseconds(bench, lambda: compiled(x, gradient, *channels))
        bench.figure("compiled, ms", took)
        bench.figure("compiled, GB/s of what it reads and writes", 4 * x.nbytes / took / 1e6)
        differences = [
            float((a.float() - b.float()).abs().max())
            for a, b in zip(fused, _in_kernels(x, gradient, *channels), strict=True)
        ]
        bench.figure("differences of output and gradient", differences)


def _in_kernels(
    x: Tensor, gradient: Tensor, multiplier: Tensor, offset: Tensor, slope: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """As `synthesis/statistics.py` and autograd compute it: output and gradient of ``x [B, C, H, W]``."""
    y = F.relu_(_affine(x, multiplier, offset))
    behind_relu = torch.ops.aten.threshold_backward(gradient, y, 0)
    own = _affine(x, slope, shift)
    own += _affine(behind_relu, multiplier, torch.zeros_like(multiplier))
    return y, own


def _in_formulas(
    x: Tensor, gradient: Tensor, multiplier: Tensor, offset: Tensor, slope: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """The same for a compiler."""
    multiplier, offset, slope, shift = (each.view(-1, 1, 1) for each in (multiplier, offset, slope, shift))
    y = (x * multiplier + offset).relu()
    own = x * slope + shift + torch.where(y > 0, gradient, 0) * multiplier
    return y.to(x.dtype), own.to(x.dtype)
