"""Runs that are cut behind a checkpoint and go on: they end in the bytes of a run that nothing happened to."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from genie_cli.config import QuantizeConfig, SynthesizeConfig
from genie_cli.quantization.plan import make_plan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.distribution import Workers
from genie_cli.runtime.work import Saved
from genie_cli.synthesis.synthesize import synthesize_images
from genie_cli.work.folder import WorkFolder
from gpu.bench import Bench
from gpu.stages import context, digits, images_sha256, network_sha256, noise


class _CutError(Exception):
    """Stands for the end of a process."""


class _CutFolder(WorkFolder):
    """Keeps a checkpoint whenever there can be one, and cuts the run behind the last of so many."""

    def __init__(self, path: Path, num_checkpoints: int) -> None:
        super().__init__(path, interval=0)
        self._left = num_checkpoints

    def save_checkpoint(self, name: str, saved: Saved, workers: Workers) -> None:
        super().save_checkpoint(name, saved, workers)
        self._left -= 1
        if not self._left:
            raise _CutError


def resuming(bench: Bench) -> None:
    """Both stages on the embedded network, cut in their second batch or unit."""
    teacher = digits()
    every = context(bench, log_every=bench.size(10, 5))  # checkpoints are possible there
    num_steps, size = bench.size((60, 32), (30, 4))
    synthesis = SynthesizeConfig(num_images=2 * size, batch_size=size, num_steps=num_steps, batches_at_once=1)
    quantization = QuantizeConfig(num_steps=num_steps, batch_size=size)
    images = noise(teacher, 2 * size)

    def synthesize(context: RunContext) -> str:
        return images_sha256(synthesize_images(teacher, synthesis, context).images)

    def quantize(context: RunContext) -> str:
        return network_sha256(quantize_network(make_plan(teacher, quantization, bench.device), images, context))

    for name, run in (("synthesis", synthesize), ("quantization", quantize)):
        with bench.part(name):
            bench.check(f"{name}: cut and gone on = in one go", _cut_and_gone_on(run, every) == run(every))


def _cut_and_gone_on(run: Callable[[RunContext], str], every: RunContext) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(replace(every, work=_CutFolder(Path(folder), num_checkpoints=8)))
        except _CutError:
            pass
        else:
            raise RuntimeError("the run ended before it could be cut")
        return run(replace(every, work=WorkFolder(Path(folder), interval=math.inf)))
