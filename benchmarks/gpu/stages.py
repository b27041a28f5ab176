"""The library's stages as sections call them: networks, contexts, and what identifies a result."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from genie_cli.config import ModelConfig
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_teacher, load_untrained
from genie_cli.quantization.result import QuantizedNetwork
from genie_cli.runtime import cuda_graph, repeated_step
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Event, Note, Reporter, silent
from genie_cli.runtime.tensor_bytes import tensors_sha256
from gpu.bench import Bench


def digits() -> Teacher:
    """The embedded network: one channel, 8 x 8 pixels, trained."""
    return load_teacher(ModelConfig())


def untrained(name: str, input_size: int | None = None) -> Teacher:
    """A network of the zoo with the same random weights each time: the work of a step does not depend on them."""
    torch.manual_seed(0)
    return load_untrained(ModelConfig(name=name, input_size=input_size))


def noise(teacher: Teacher, num_images: int) -> Tensor:
    """Images ``[num_images, C, S, S]`` of white noise, the same each time."""
    spec = teacher.input
    return torch.randn(num_images, spec.num_channels, spec.size, spec.size, generator=torch.Generator().manual_seed(0))


def context(bench: Bench, report: Reporter = silent, **changes: Any) -> RunContext:
    """A context of one process on the bench's device; `changes` are other attributes of it."""
    return replace(RunContext.alone(bench.device, bench.dtype, report), **changes)


class Notes:
    """A reporter that keeps the notes."""

    def __init__(self) -> None:
        """Start with none."""
        self.messages: list[str] = []

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Note):
            self.messages.append(event.message)


@contextmanager
def eager_steps() -> Iterator[None]:
    """Inside, no step is recorded."""
    with patch.object(cuda_graph, "WARMUP_STEPS", -1), patch.object(repeated_step, "RECORD_FROM", math.inf):
        yield


def network_sha256(network: QuantizedNetwork) -> str:
    """The hash of all that was learned."""
    tensors = {f"{name}.step_size": own.step_size for name, own in network.activations.items()}
    for name, weight in network.weights.items():
        tensors.update({f"{name}.{part}": getattr(weight, part) for part in ("codes", "scale", "zero_point")})
    return tensors_sha256(tensors)


def images_sha256(images: Tensor) -> str:
    """The hash of images."""
    return tensors_sha256({"images": images})
