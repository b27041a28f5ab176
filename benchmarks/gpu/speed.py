"""Speed of both stages on ResNet-18 at 224, and what the paper's budget would take at that speed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch
from roofline import ceilings, count, synthesis_steps
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from genie_cli.config import QuantizeConfig, SynthesizeConfig
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.plan import make_plan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.synthesis.distill import Batch
from genie_cli.synthesis.presets import preset_options
from genie_cli.synthesis.teacher_network import TeacherNetwork
from gpu.bench import Bench
from gpu.stages import context, eager_steps, noise, untrained
from gpu.timing import StepTimes, both_clocks

PAPER_IMAGES = 1024
_NUM_KERNELS = 15
_WARM_STEPS = 10


@dataclass
class Measured:
    """Seconds per step, once known.

    Attributes:
        synthesis: of a batch of 128 images.
        unit_steps: of quantization: one step of each unit.
        fixed: of quantization beside its steps, for the images that were measured.
    """

    synthesis: float | None = None
    unit_steps: float | None = None
    fixed: float = 0.0


def speed(bench: Bench) -> None:
    """Milliseconds per step, memory, the dearest kernels, shares of the ceilings, minutes of the paper's budget."""
    teacher = untrained("resnet18", bench.size(224, 32))
    measured = Measured()
    with bench.part("synthesis"):
        _synthesis(bench, teacher, measured)
    with bench.part("quantization"):
        _quantization(bench, teacher, measured)
    with bench.part("minutes for the paper's budget"):
        _project(bench, measured)
    with bench.part("shares of the ceilings"):
        _shares(bench, teacher, measured)


def _synthesis(bench: Bench, teacher: Teacher, measured: Measured) -> None:
    with eager_steps():
        _batch_steps(bench, teacher, "eager")
    measured.synthesis = _batch_steps(bench, teacher, "recorded")


def _batch_steps(bench: Bench, teacher: Teacher, kind: str) -> float:
    """Seconds of a step of one batch by the clock; tells more."""
    size = bench.size(128, 8)
    config, own = SynthesizeConfig(num_images=size, batch_size=size), context(bench)
    network = TeacherNetwork(teacher, config, own)
    if bench.is_cuda:
        gc.collect()
        torch.cuda.empty_cache()
    with closing(Batch([network], teacher, None, 0, size, config, own)) as batch:
        for _ in range(bench.size(_WARM_STEPS, 1)):
            batch.step()
        found = both_clocks(bench, batch.step, bench.size(60, 3))
        bench.figure(f"synthesis, {kind}, ms per step", found)
        if bench.is_cuda:
            bench.figure(f"synthesis, {kind}, GB reserved", torch.cuda.memory_reserved(bench.device) / 1e9)
        if kind == "recorded":
            with bench.part("dearest kernels"):
                _dearest_kernels(bench, batch.step)
    return found["clock"] / 1e3


def _dearest_kernels(bench: Bench, step: Callable[[], None]) -> None:
    num_steps = bench.size(5, 1)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.is_cuda else [])]
    with profile(activities=activities) as profiler:
        for _ in range(num_steps):
            step()
        bench.synchronize()
    kind = DeviceType.CUDA if bench.is_cuda else DeviceType.CPU
    rows = []
    for event in profiler.key_averages():
        if event.device_type == kind:
            took = event.self_device_time_total if bench.is_cuda else event.self_cpu_time_total
            rows.append({"ms": took / 1e3 / num_steps, "calls": event.count // num_steps, "name": event.key[:100]})
    rows.sort(key=lambda row: -row["ms"])
    bench.figure("synthesis, ms per step in which kernels ran", sum(row["ms"] for row in rows))
    bench.figure("synthesis, dearest kernels per step", rows[:_NUM_KERNELS])


def _quantization(bench: Bench, teacher: Teacher, measured: Measured) -> None:
    num_images, num_steps = bench.size(128, 8), bench.size(300, 6)
    config = QuantizeConfig(num_steps=num_steps, batch_size=bench.size(32, 4))
    times = StepTimes(bench)
    own = context(bench, times, log_every=bench.size(50, 2))
    started = time.perf_counter()
    network = quantize_network(make_plan(teacher, config, bench.device), noise(teacher, num_images), own)
    elapsed = time.perf_counter() - started
    by_clock, by_events = times.medians(), times.by_events().medians()
    measured.unit_steps = sum(by_clock.values())
    measured.fixed = elapsed - num_steps * measured.unit_steps
    bench.figure("quantization, units", len(network.units))
    bench.figure("quantization, ms per unit and step", 1e3 * measured.unit_steps / len(by_clock))
    if by_events:
        bench.figure("quantization, ms per unit and step by events", 1e3 * sum(by_events.values()) / len(by_events))
    bench.figure("quantization, ms per step", {place.split()[-1]: 1e3 * took for place, took in by_clock.items()})
    bench.figure(f"quantization, s beside steps, {num_images} images", measured.fixed)
    bench.figure("quantization, activations, MiB", {place: num / 2**20 for place, num in network.memory.items()})
    if bench.is_cuda:
        bench.figure("quantization, GB reserved", torch.cuda.memory_reserved(bench.device) / 1e9)


def _project(bench: Bench, measured: Measured) -> None:
    """Minutes at the measured speed: 8 batches of 128 images; what is beside steps grows with the images."""
    if measured.synthesis is None or measured.unit_steps is None:
        raise RuntimeError("one of the stages was not measured")
    num_batches = PAPER_IMAGES // SynthesizeConfig().batch_size
    quantization = PAPER_IMAGES / bench.size(128, 8) * measured.fixed + QuantizeConfig().num_steps * measured.unit_steps
    for preset in ("genie", "genie-fast"):
        steps = SynthesizeConfig(**preset_options(preset)).num_steps
        synthesis = num_batches * steps * measured.synthesis
        minutes = {"synthesis": synthesis / 60, "quantization": quantization / 60}
        bench.figure(f"minutes, {preset}", {**minutes, "both": sum(minutes.values())})


def _shares(bench: Bench, teacher: Teacher, measured: Measured) -> None:
    """The time that operations, and bytes, would take at the measured ceilings, over that which a step takes."""
    products, copies = ceilings(bench.device, bench.dtype)
    size = bench.size(128, 8)
    batch_size = bench.size(32, 4)

    def unit_steps(num_steps: int) -> object:
        config = QuantizeConfig(
            num_steps=num_steps, batch_size=batch_size, weight_range="minmax", activation_range="minmax"
        )
        plan = make_plan(teacher, config, bench.device)
        return quantize_network(plan, noise(teacher, batch_size), context(bench))

    stages = {
        "synthesis": (synthesis_steps(teacher, size, bench.device, bench.dtype), measured.synthesis),
        "quantization": (unit_steps, measured.unit_steps),
    }
    for name, (take_steps, seconds) in stages.items():
        operations, moved = count(take_steps)
        found = {"TFLOP": operations / 1e12, "GB": moved / 1e9}
        if seconds is not None:
            found["% of TFLOP/s"] = 100 * operations / products / seconds
            found["% of GB/s"] = 100 * moved / copies / seconds
        bench.figure(f"{name}, a step of it", found)
