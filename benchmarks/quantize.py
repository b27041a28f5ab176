"""Seconds of quantization: per step and unit, fixed, and in all for a budget, by depth and number of images.

    python benchmarks/quantize.py --models cifar_resnet20 --num-images 1024 --baseline --out quantize.json

Networks and images are random: the work of a step does not depend on them. `--num-steps` steps are measured in
every unit. The total is that of `--budget` steps per unit: fixed seconds + budget x seconds per step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import torch
from baseline import load_module, quantize_baseline
from measuring import DTYPES, Stopwatch, finish, parser, prepare
from torch import Tensor

from genie_cli.config import ModelConfig, QuantizeConfig
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_untrained
from genie_cli.quantization.plan import make_plan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.memory import peak_memory


def measure(
    name: str, teacher: Teacher, images: Tensor, precision: str, args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """One row of figures; genie and the baseline run in turn."""
    config = QuantizeConfig(num_steps=args.num_steps, memory_limit=args.memory_limit)
    totals: list[float] = []
    opponents: list[float] = []
    units: dict[str, float] = {}
    fixed = 0.0
    for _ in range(args.rounds):
        watch, started = Stopwatch(), time.perf_counter()
        context = RunContext.alone(device, DTYPES[precision], watch)
        quantize_network(make_plan(teacher, config, device), images, context)
        elapsed = time.perf_counter() - started
        units = watch.medians()
        fixed = elapsed - args.num_steps * sum(units.values())
        totals.append(fixed + args.budget * sum(units.values()))
        if args.baseline:
            opponents.append(baseline_total(name, images, args))
    baseline = statistics.median(opponents) if opponents else None
    total = statistics.median(totals)
    return {
        "model": name,
        "images": len(images),
        "precision": precision,
        "units": len(units),
        "ms/step": 1e3 * statistics.mean(units.values()),
        "fixed s": fixed,
        "fixed s/unit": fixed / len(units),
        f"total s ({args.budget})": total,
        "baseline s": baseline,
        "ratio": baseline / total if baseline else None,
        "peak MiB": max(peak_memory(device).values()) / 2**20,
        "by unit": {unit: round(1e3 * seconds, 3) for unit, seconds in units.items()},
    }


def baseline_total(name: str, images: Tensor, args: argparse.Namespace) -> float:
    """Seconds of the baseline for the budget, extrapolated in the same way."""
    fixed, steps = 0.0, 0.0

    def add(unit: str, fixed_seconds: float, step_seconds: float) -> None:
        nonlocal fixed, steps
        fixed += fixed_seconds
        steps += step_seconds / args.num_steps

    quantize_baseline(load_module(name), images, 4, 4, args.num_steps, on_unit=add)
    return float(fixed + args.budget * steps)


def main() -> None:
    """Measure, print, write."""
    options = parser(__doc__)
    options.add_argument("--models", default="cifar_resnet20", help="names, comma-separated")
    options.add_argument("--num-images", default="1024", help="numbers, comma-separated")
    options.add_argument("--precisions", default="bf16")
    options.add_argument("--num-steps", type=int, default=150, help="steps measured in each unit")
    options.add_argument("--budget", type=int, default=20000, help="steps per unit that the total is for")
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--memory-limit", type=int, help="bytes")
    options.add_argument("--baseline", action="store_true", help="run the baseline in turn")
    args = options.parse_args()
    if args.num_steps < 100:
        options.error("--num-steps must be 100 or more: progress, and so time, is told every 50 steps")
    device = prepare(args)
    rows = []
    for name in args.models.split(","):
        teacher = load_untrained(ModelConfig(name=name))
        spec = teacher.input
        for count in map(int, args.num_images.split(",")):
            generator = torch.Generator().manual_seed(0)
            images = torch.randn(count, *spec.shape, generator=generator)
            for precision in args.precisions.split(","):
                sys.stderr.write(f"{name}, {count} images, {precision}\n")
                rows.append(measure(name, teacher, images, precision, args, device))
    finish(rows, device, args.out)


if __name__ == "__main__":
    main()
