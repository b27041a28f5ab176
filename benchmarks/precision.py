"""Whether `--precision auto` takes the faster arithmetic: seconds of both in turn, for both stages.

    python benchmarks/precision.py --models cifar_resnet20,mobilenet_v2 --rounds 5

A round runs float32 and bfloat16 one after the other. The last column is the seconds of what auto takes over those of
the faster one, by the medians of the rounds; auto is measured anew, the user's cache is left alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import DTYPES, Stopwatch, finish, parser, prepare

from genie_cli.config import InputSpec, ModelConfig, QuantizeConfig, SynthesizeConfig
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_untrained
from genie_cli.quantization.plan import make_plan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.runtime.arithmetic import LEAST_GAIN
from genie_cli.runtime.arithmetic_speed import Passes, measure
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Reporter
from genie_cli.synthesis.synthesize import synthesize_images


def stages(
    teacher: Teacher, args: argparse.Namespace, device: torch.device
) -> dict[Passes, Callable[[torch.dtype, Reporter], object]]:
    """Stage -> a run of it in an arithmetic."""
    spec: InputSpec = teacher.input
    images = torch.randn(args.batch_size, *spec.shape)
    made = SynthesizeConfig(num_images=args.batch_size, batch_size=args.batch_size, num_steps=args.num_steps)
    learned = QuantizeConfig(num_steps=args.num_steps, batch_size=min(32, args.batch_size))
    return {
        "synthesize": lambda dtype, report: synthesize_images(teacher, made, RunContext.alone(device, dtype, report)),
        "quantize": lambda dtype, report: quantize_network(
            make_plan(teacher, learned, device), images, RunContext.alone(device, dtype, report)
        ),
    }


def row(name: str, passes: Passes, run: Callable[[torch.dtype, Reporter], object], rounds: int) -> dict[str, Any]:
    """Medians of both arithmetics and what auto makes of its own measurement."""
    seconds: dict[str, list[float]] = {precision: [] for precision in DTYPES}
    for _ in range(rounds):
        for precision, dtype in DTYPES.items():
            watch, started = Stopwatch(), time.perf_counter()
            run(dtype, watch)
            seconds[precision].append(time.perf_counter() - started)
    medians = {precision: statistics.median(times) for precision, times in seconds.items()}
    gain = measure(passes).gain
    chosen = "bf16" if gain >= LEAST_GAIN else "fp32"
    return {
        "model": name,
        "stage": passes,
        **{f"{precision} s": median for precision, median in medians.items()},
        "measured gain": gain,
        "auto": chosen,
        "auto/best": medians[chosen] / min(medians.values()),
        "all": seconds,
    }


def main() -> None:
    """Measure, print, write."""
    options = parser(__doc__)
    options.add_argument("--models", default="cifar_resnet20", help="names, comma-separated")
    options.add_argument("--batch-size", type=int, default=128, help="images")
    options.add_argument("--num-steps", type=int, default=50)
    options.add_argument("--rounds", type=int, default=5)
    args = options.parse_args()
    device = prepare(args)
    rows = []
    for name in args.models.split(","):
        teacher = load_untrained(ModelConfig(name=name))
        for passes, run in stages(teacher, args, device).items():
            sys.stderr.write(f"{name}, {passes}\n")
            rows.append(row(name, passes, run, args.rounds))
    finish(rows, device, args.out)


if __name__ == "__main__":
    main()
