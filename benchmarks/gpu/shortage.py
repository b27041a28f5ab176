"""Memory runs out: synthesis names a batch size that fits, quantization takes micro-batches; then all is as before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from genie_cli.config import QuantizeConfig, SynthesizeConfig
from genie_cli.errors import DeviceError
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.plan import make_plan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.synthesis.synthesize import synthesize_images
from gpu.bench import Bench, SkippedError
from gpu.stages import Notes, context, noise, untrained

_BATCH = 512
"""Images of ResNet-18 at 224 in a batch, in both stages."""
_LEFT = {"synthesis": 9e9, "quantization": 4e9}
"""Bytes that are left to a stage: less than half of what such a batch takes."""


def shortage(bench: Bench) -> None:
    """Work on ResNet-18 that there is not the memory for, and the same work with all of it."""
    bench.require_cuda()
    if bench.options.is_tiny:
        raise SkippedError("needs the full sizes")
    teacher = untrained("resnet18")
    with bench.part("synthesis"), _filled(bench, _LEFT["synthesis"]):
        _short_synthesis(bench, teacher)
    with bench.part("quantization"), _filled(bench, _LEFT["quantization"]):
        notes = _quantize(bench, teacher)
        bench.figure("quantization says", notes)
        bench.check("quantization takes micro-batches", any("micro-batches" in note for note in notes))
    with bench.part("afterwards"):
        _synthesize(bench, teacher, _BATCH)
        bench.check("the same batch fits afterwards", True)
        bench.check("quantization has nothing to say afterwards", not _quantize(bench, teacher))


@contextmanager
def _filled(bench: Bench, left: float) -> Iterator[None]:
    """A card of whose memory something else holds all but `left` bytes."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(bench.device)
    held = torch.empty(max(0, free - int(left)), dtype=torch.uint8, device=bench.device)
    try:
        yield
    finally:
        del held
        torch.cuda.empty_cache()


def _short_synthesis(bench: Bench, teacher: Teacher) -> None:
    message = ""
    try:
        _synthesize(bench, teacher, _BATCH)
    except DeviceError as error:
        message = str(error)
    bench.figure("synthesis says", message)
    named = re.search(r"--batch-size (\d+) does", message)
    bench.check("synthesis names a batch size that fits", named is not None)
    if named is not None:
        _synthesize(bench, teacher, int(named[1]))
        bench.check("the named batch size fits", True)


def _synthesize(bench: Bench, teacher: Teacher, size: int) -> None:
    synthesize_images(teacher, SynthesizeConfig(num_images=size, batch_size=size, num_steps=6), context(bench))


def _quantize(bench: Bench, teacher: Teacher) -> list[str]:
    """Two steps per unit; the notes."""
    notes = Notes()
    config = QuantizeConfig(num_steps=2, batch_size=_BATCH, weight_range="minmax", activation_range="minmax")
    quantize_network(make_plan(teacher, config, bench.device), noise(teacher, _BATCH), context(bench, notes))
    return notes.messages
