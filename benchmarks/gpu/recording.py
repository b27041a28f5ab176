"""Recorded steps: the same bits as eager ones, however often and however many side by side, and no memory kept."""

from __future__ import annotations

import gc
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch

from genie_cli.config import QuantizeConfig, SynthesizeConfig
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.plan import make_plan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.runtime.progress import Advanced, Event
from genie_cli.synthesis.synthesize import synthesize_images
from gpu.bench import Bench
from gpu.stages import Notes, context, digits, eager_steps, images_sha256, network_sha256, noise, untrained

_NUM_BATCHES = 8
_WORTH_NOTING = 1.2
"""Memory behind eight batches, over that behind one, from which it is taken to grow with their number."""


def recording(bench: Bench) -> None:
    """Eager against recorded steps of two networks in both stages; warnings; what is left in memory."""
    notes = Notes()
    teachers = {"digits": digits(), "cifar_resnet20": untrained("cifar_resnet20")}
    with _warnings_told(bench, notes):
        for name, teacher in teachers.items():
            with bench.part(f"{name}, synthesis"):
                _synthesis(bench, name, teacher, notes)
            with bench.part(f"{name}, quantization"):
                _quantization(bench, name, teacher, notes)
        with bench.part("memory behind batches"):
            _memory_behind_batches(bench, teachers["cifar_resnet20"])
        with bench.part("memory behind units"):
            _memory_behind_units(bench, teachers["cifar_resnet20"])


def _synthesis(bench: Bench, name: str, teacher: Teacher, notes: Notes) -> None:
    def run(at_once: int) -> str:
        config = _batches(bench, _NUM_BATCHES, at_once)
        return images_sha256(synthesize_images(teacher, config, context(bench, notes)).images)

    eager = _timed(bench, f"{name}, {_NUM_BATCHES} batches, eager", lambda: run(1), is_eager=True)
    recorded = _timed(bench, f"{name}, {_NUM_BATCHES} batches, recorded", lambda: run(1))
    again = _timed(bench, f"{name}, {_NUM_BATCHES} batches, recorded again", lambda: run(1))
    at_once = _timed(bench, f"{name}, {_NUM_BATCHES} batches, recorded, all at once", lambda: run(_NUM_BATCHES))
    bench.check(f"{name}, synthesis: recorded = eager", recorded == eager)
    bench.check(f"{name}, synthesis: recorded twice, the same", recorded == again)
    bench.check(f"{name}, synthesis: {_NUM_BATCHES} at once = one by one", recorded == at_once)


def _quantization(bench: Bench, name: str, teacher: Teacher, notes: Notes) -> None:
    images = noise(teacher, bench.size(64, 16))
    # a CPU records what is called 100 times, and is slow with the larger network
    num_steps = bench.size(40, 130 if name == "digits" else 10)
    config = QuantizeConfig(num_steps=num_steps, batch_size=bench.size(32, 4))

    def run() -> str:
        plan = make_plan(teacher, config, bench.device)
        return network_sha256(quantize_network(plan, images, context(bench, notes)))

    eager = _timed(bench, f"{name}, {config.num_steps} steps per unit, eager", run, is_eager=True)
    recorded = _timed(bench, f"{name}, {config.num_steps} steps per unit, recorded", run)
    again = _timed(bench, f"{name}, {config.num_steps} steps per unit, recorded again", run)
    bench.check(f"{name}, quantization: recorded = eager", recorded == eager)
    bench.check(f"{name}, quantization: recorded twice, the same", recorded == again)


def _memory_behind_batches(bench: Bench, teacher: Teacher) -> None:
    bench.require_cuda()
    reserved = []
    for count in (1, 3, _NUM_BATCHES):
        torch.cuda.empty_cache()
        with _no_collector():
            synthesize_images(teacher, _batches(bench, count, 1), context(bench))
            live = _live_graphs()
        gc.collect()
        reserved.append(torch.cuda.memory_reserved(bench.device))
        bench.figure(f"behind {count} batches", {"live graphs": live, **_memory(bench)})
        bench.check(f"no graph is left behind {count} batches", live == 0)
    bench.check("reserved memory does not grow with batches", reserved[-1] <= _WORTH_NOTING * reserved[0])


def _memory_behind_units(bench: Bench, teacher: Teacher) -> None:
    bench.require_cuda()
    behind: list[dict[str, float]] = []

    def report(event: Event) -> None:
        if isinstance(event, Advanced) and "error" in event.values:  # a unit is done
            behind.append({"live graphs": _live_graphs(), **_memory(bench)})

    config = QuantizeConfig(num_steps=20)
    with _no_collector():
        quantize_network(make_plan(teacher, config, bench.device), noise(teacher, 64), context(bench, report))
    bench.figure("behind 1 unit", behind[0])
    bench.figure("behind 5 units", behind[4])
    bench.check("no graph is left behind 5 units", behind[4]["live graphs"] == 0)


def _batches(bench: Bench, count: int, at_once: int) -> SynthesizeConfig:
    size = bench.size(32, 4)
    steps = bench.size(30, 6)
    return SynthesizeConfig(num_images=count * size, batch_size=size, num_steps=steps, batches_at_once=at_once)


def _timed(bench: Bench, name: str, run: Callable[[], str], is_eager: bool = False) -> str:
    bench.synchronize()
    started = time.perf_counter()
    with eager_steps() if is_eager else nullcontext():
        result = run()
    bench.synchronize()
    bench.figure(f"{name}, s", time.perf_counter() - started)
    return result


@contextmanager
def _warnings_told(bench: Bench, notes: Notes) -> Iterator[None]:
    """Tell the warnings and notes that the work inside gives, each text once, with its number."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            texts = Counter(f"{one.category.__name__}: {str(one.message).splitlines()[0][:200]}" for one in caught)
            bench.figure("warnings", dict(texts))
            bench.figure("notes", dict(Counter(notes.messages)))


@contextmanager
def _no_collector() -> Iterator[None]:
    """Keep Python's collector from hiding what is left in cycles."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _live_graphs() -> int:
    return sum(issubclass(type(one), torch.cuda.CUDAGraph) for one in gc.get_objects())


def _memory(bench: Bench) -> dict[str, float]:
    allocated, reserved = torch.cuda.memory_allocated(bench.device), torch.cuda.memory_reserved(bench.device)
    return {"allocated MiB": allocated / 2**20, "reserved MiB": reserved / 2**20}
