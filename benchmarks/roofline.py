"""Operations and bytes of a synthesis step, compared with the peak rates measured on this machine.

    python benchmarks/roofline.py --model cifar_resnet20 --precisions bf16,fp32

Operations are those of convolutions and matrix products, forward and backward (`FlopCounterMode`). Bytes are the
tensors that every operation reads and writes, counted once per operation, as if no cache held them. The peak rates
are those of a large matrix product in the precision and of a large copy. The percentage is the time of operations
or bytes at peak rate, whichever is longer, over the measured time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import DTYPES, Stopwatch, finish, parser, prepare
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from genie_cli.config import ModelConfig, SynthesizeConfig
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_untrained
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import silent
from genie_cli.synthesis.synthesize import synthesize_images


class _ByteCounter(TorchDispatchMode):
    """Adds up the bytes of the tensors that each operation reads and writes; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.total += sum(tensor.nbytes for tensor in tensors)
        return result


def count(take_steps: Callable[[int], object]) -> tuple[float, float]:
    """Operations and bytes of one step: those of three steps minus those of two."""
    totals = []
    for num_steps in (2, 3):
        flops, moved = FlopCounterMode(display=False), _ByteCounter()
        with flops, moved:
            take_steps(num_steps)
        totals.append((flops.get_total_flops(), moved.total))
    return float(totals[1][0] - totals[0][0]), float(totals[1][1] - totals[0][1])


def synthesis_steps(
    teacher: Teacher, batch_size: int, device: torch.device, dtype: torch.dtype
) -> Callable[[int], object]:
    """Takes so many steps of one batch of images."""

    def take_steps(num_steps: int) -> object:
        config = SynthesizeConfig(num_images=batch_size, batch_size=batch_size, num_steps=num_steps)
        return synthesize_images(teacher, config, RunContext.alone(device, dtype, silent))

    return take_steps


def _best_seconds(work: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def ceilings(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Operations per second of a matrix product, bytes per second of a copy."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    product = _best_seconds(lambda: a @ b, device)
    copy = _best_seconds(lambda: target.copy_(source), device)
    return 2 * size**3 / product, 2 * source.nbytes / copy


def main() -> None:
    """Measure, print, write."""
    options = parser(__doc__)
    options.add_argument("--model", default="cifar_resnet20")
    options.add_argument("--batch-size", type=int, default=128)
    options.add_argument("--precisions", default="bf16,fp32")
    args = options.parse_args()
    device = prepare(args)
    teacher = load_untrained(ModelConfig(name=args.model))
    rows = []
    for precision in args.precisions.split(","):
        dtype = DTYPES[precision]
        operations, moved = count(synthesis_steps(teacher, args.batch_size, device, dtype))
        compute, bandwidth = ceilings(device, dtype)
        watch = Stopwatch()
        config = SynthesizeConfig(num_images=args.batch_size, batch_size=args.batch_size, num_steps=40)
        synthesize_images(teacher, config, RunContext.alone(device, dtype, watch))
        seconds = statistics.median(next(iter(watch.per_step.values()))[1:])
        bound = max(operations / compute, moved / bandwidth)
        rows.append(
            {
                "model": args.model,
                "precision": precision,
                "GFLOP/step": operations / 1e9,
                "GB/step": moved / 1e9,
                "peak GFLOP/s": compute / 1e9,
                "peak GB/s": bandwidth / 1e9,
                "s/step": seconds,
                "compute s": operations / compute,
                "traffic s": moved / bandwidth,
                "roofline %": 100 * bound / seconds,
            }
        )
    finish(rows, device, args.out)


if __name__ == "__main__":
    main()
