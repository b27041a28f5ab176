"""Milliseconds a step of synthesis and of reconstruction on this machine, per precision.

    python benchmarks/step_times.py --model cifar_resnet20 --out times.json

Networks have random weights: the work of a step does not depend on them. Prints a table, and one JSON
object with the hardware's and torch's names. Median over the intervals between progress events.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from genie_cli.config import ModelConfig, QuantizeConfig, SynthesizeConfig
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_untrained
from genie_cli.quantization.quantize import quantize_network
from genie_cli.runtime.device import resolve_device
from genie_cli.runtime.progress import Advanced, Event
from genie_cli.synthesis.distill import synthesize_images


class _Stopwatch:
    """A reporter that measures the time between progress events of one place (batch or unit)."""

    def __init__(self) -> None:
        self.per_step: dict[str, list[float]] = {}
        self._last: tuple[str, int, float] | None = None

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Advanced):
            return
        now = time.perf_counter()
        if self._last is not None and self._last[0] == event.detail and event.done > self._last[1]:
            seconds = (now - self._last[2]) / (event.done - self._last[1])
            self.per_step.setdefault(event.detail, []).append(seconds)
        self._last = (event.detail, event.done, now)

    def medians_ms(self) -> dict[str, float]:
        """Place -> median milliseconds a step."""
        return {place: round(1e3 * statistics.median(times), 2) for place, times in self.per_step.items()}


def _synthesis(teacher: Teacher, args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    watch = _Stopwatch()
    config = SynthesizeConfig(num_images=args.batch_size, batch_size=args.batch_size, num_steps=args.num_steps)
    synthesize_images(teacher, config, device, dtype, watch)
    return {"ms_per_step": next(iter(watch.medians_ms().values()))}


def _reconstruction(
    teacher: Teacher, args: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    watch = _Stopwatch()
    spec = teacher.input
    images = torch.randn(args.num_images, spec.num_channels, spec.size, spec.size)
    # events come every 50 steps: four intervals a unit
    started = time.perf_counter()
    quantize_network(teacher, images, QuantizeConfig(num_steps=250), device, dtype, watch)
    units = watch.medians_ms()
    total = time.perf_counter() - started
    return {
        "ms_per_step_mean_of_units": round(statistics.mean(units.values()), 2),
        "fixed_seconds": round(total - sum(units.values()) * 250 / 1e3, 2),
        "units": units,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cifar_resnet20")
    parser.add_argument("--batch-size", type=int, default=128, help="images a synthesis step")
    parser.add_argument("--num-steps", type=int, default=60, help="synthesis steps")
    parser.add_argument("--num-images", type=int, default=256, help="calibration images")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    device = resolve_device(args.device)
    teacher = load_untrained(ModelConfig(name=args.model))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    result: dict[str, Any] = {
        "model": args.model,
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    for dtype in (torch.float32, torch.bfloat16):
        key = str(dtype).removeprefix("torch.")
        result[key] = {
            "synthesis": _synthesis(teacher, args, device, dtype),
            "reconstruction": _reconstruction(teacher, args, device, dtype),
        }
        synthesis, reconstruction = result[key]["synthesis"], result[key]["reconstruction"]
        sys.stdout.write(
            f"{args.model} {key}: synthesis {synthesis['ms_per_step']} ms a step of {args.batch_size}, "
            f"reconstruction {reconstruction['ms_per_step_mean_of_units']} ms a step of 32 (mean of units)\n"
        )
    text = json.dumps(result, indent=2)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
