"""Seconds per synthesis step, by model, batch and precision, beside the baseline's in the same minutes.

    python benchmarks/synthesize.py --models cifar_resnet20 --baseline --out synthesize.json

Networks have random weights: the work of a step does not depend on them. genie and the baseline run in
turn, `--rounds` times each; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from typing import Any

import torch
from baseline import BaselineSynthesis, load_module
from measuring import DTYPES, Stopwatch, finish, parser, prepare

from genie_cli.config import ModelConfig, SynthesizeConfig
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_untrained
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.memory import peak_memory
from genie_cli.synthesis.synthesize import synthesize_images


def measure(
    name: str, teacher: Teacher, batch_size: int, precisions: list[str], args: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """One row of figures per precision."""
    spec = teacher.input
    seconds: dict[str, list[float]] = {precision: [] for precision in precisions}
    opponent: list[float] = []
    config = SynthesizeConfig(num_images=batch_size, batch_size=batch_size, num_steps=args.num_steps)
    for _ in range(args.rounds):
        for precision in precisions:
            watch = Stopwatch()
            synthesize_images(teacher, config, RunContext.alone(device, DTYPES[precision], watch))
            seconds[precision] += next(iter(watch.per_step.values()))[1:]  # the first steps warm up
        if args.baseline:
            opponent += baseline_seconds(name, spec.num_channels, spec.size, batch_size, max(3, args.num_steps // 4))
        gc.collect()
    baseline = statistics.median(opponent) if opponent else None
    rows = []
    for precision in precisions:
        median = statistics.median(seconds[precision])
        rows.append(
            {
                "model": name,
                "batch": batch_size,
                "precision": precision,
                "s/step": median,
                "images*steps/s": batch_size / median,
                "baseline s/step": baseline,
                "ratio": baseline / median if baseline else None,
                "peak MiB": max(peak_memory(device).values()) / 2**20,
                "all": {"product": seconds[precision], "baseline": opponent},
            }
        )
    return rows


def baseline_seconds(name: str, num_channels: int, size: int, batch_size: int, num_steps: int) -> list[float]:
    """Seconds of each step of the baseline except the first."""
    synthesis = BaselineSynthesis(load_module(name), num_channels, size, batch_size)
    seconds = []
    for _ in range(num_steps):
        started = time.perf_counter()
        synthesis.step()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def main() -> None:
    """Measure, print, write."""
    options = parser(__doc__)
    options.add_argument("--models", default="cifar_resnet20", help="names, comma-separated")
    options.add_argument("--batch-sizes", default="128")
    options.add_argument("--precisions", default="bf16,fp32")
    options.add_argument("--num-steps", type=int, default=30, help="steps per round")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--baseline", action="store_true", help="run the baseline in turn")
    args = options.parse_args()
    if args.num_steps < 20:
        options.error("--num-steps must be 20 or more: progress, and so time, is told every 10 steps")
    device = prepare(args)
    rows = []
    for name in args.models.split(","):
        teacher = load_untrained(ModelConfig(name=name))
        for batch_size in map(int, args.batch_sizes.split(",")):
            sys.stderr.write(f"{name}, batch {batch_size}\n")
            rows += measure(name, teacher, batch_size, args.precisions.split(","), args, device)
    finish(rows, device, args.out)


if __name__ == "__main__":
    main()
