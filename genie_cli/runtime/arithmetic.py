"""The arithmetic of a stage: float32 or bfloat16, with the reason for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from genie_cli.runtime.arithmetic_speed import Passes, cpu_seconds
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.distribution import Workers
from genie_cli.runtime.progress import silent

Precision = Literal["auto", "fp32", "bf16"]
DTYPES = (torch.float32, torch.bfloat16)
"""The arithmetics of networks' passes; statistics, losses and optimizer state stay float32 in both."""
LEAST_GAIN = 0.15
"""Share by which bfloat16 has to be faster on a CPU: it has fewer digits."""
_MATRIX_UNITS = (8, 0)
"""CUDA's compute capability from which GPUs multiply matrices of bfloat16."""


@dataclass(frozen=True)
class ChosenArithmetic:
    """An arithmetic and why it was taken; as text ``float32: bfloat16 gains 3 %, measured``.

    Attributes:
        dtype: one of `DTYPES`.
        reason: half a sentence for the summary.
    """

    dtype: torch.dtype
    reason: str

    def __str__(self) -> str:
        """Name and reason."""
        return f"{dtype_name(self.dtype)}: {self.reason}"


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` or ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def decide_arithmetic(
    precision: Precision,
    device: torch.device,
    workers: Workers,
    passes: Passes,
    unsupported: Callable[[RunContext], str | None],
    is_unfinished: Callable[[torch.dtype], bool],
    say: Callable[[str, bool], None],
) -> ChosenArithmetic:
    """The arithmetic of a run: the first process chooses for all, and it is float32 where one of them needs that.

    Args:
        precision: what the user wants.
        device: where this process computes.
        workers: the processes, all of which ask.
        passes: the stage, whose speed counts on a CPU.
        unsupported: names the operation that the arithmetic of a context lacks, if any; it is asked before the work.
        is_unfinished: true if an earlier run in this arithmetic can be gone on from, which wins over speed.
        say: receives a note, and whether it is a warning.

    Raises:
        GenieError: of `unsupported`, in every process.
    """
    chosen = ChosenArithmetic(torch.float32, "as the first process chose")
    with workers.agreeing():
        if workers.is_first:
            left = [dtype for dtype in DTYPES if precision == "auto" and is_unfinished(dtype)]
            if len(left) == 1:
                chosen = ChosenArithmetic(left[0], "that of the unfinished run, which goes on")
            else:
                chosen = choose_arithmetic(precision, device, passes)
    is_bfloat16 = workers.is_first and chosen.dtype == torch.bfloat16
    if not workers.sum_(torch.tensor(float(is_bfloat16))):
        return chosen
    with workers.agreeing():
        lacking = unsupported(RunContext.alone(device, torch.bfloat16, silent))
    if not workers.sum_(torch.tensor(float(lacking is not None))):
        return replace(chosen, dtype=torch.bfloat16)
    reason = f"{lacking or 'what another process met'} cannot be computed in bfloat16"
    say(f"{reason}: the run goes on in float32.", precision == "bf16")
    return ChosenArithmetic(torch.float32, reason)


def choose_arithmetic(precision: Precision, device: torch.device, passes: Passes) -> ChosenArithmetic:
    """The arithmetic of the networks' passes.

    ``auto`` takes bfloat16 on a GPU with matrix units for it, and on a CPU where a short measurement shows that it is
    faster by `LEAST_GAIN`.

    Args:
        precision: what the user wants.
        device: where the stage computes.
        passes: whose speed counts on a CPU.
    """
    if precision != "auto":
        return ChosenArithmetic(torch.float32 if precision == "fp32" else torch.bfloat16, "asked for")
    if device.type == "cuda":
        has_units = torch.cuda.get_device_capability(device) >= _MATRIX_UNITS
        what = "has" if has_units else "has no"
        return ChosenArithmetic(
            torch.bfloat16 if has_units else torch.float32, f"the GPU {what} matrix units for bfloat16"
        )
    gain = cpu_seconds(passes).gain
    said = f"gains {100 * gain:.0f} %" if gain >= 0 else f"takes {1 / (1 + gain):.1f} times as long"
    if gain >= LEAST_GAIN:
        return ChosenArithmetic(torch.bfloat16, f"it {said}, measured")
    return ChosenArithmetic(torch.float32, f"bfloat16 {said}, measured")
