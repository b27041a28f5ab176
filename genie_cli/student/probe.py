"""The probe: a quantized network's logits for a fixed input, recorded when it is made, compared by ``genie verify``."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from genie_cli.artifacts.quantized import QuantizedArtifact
from genie_cli.config import InputSpec
from genie_cli.errors import InputError
from genie_cli.models.teacher import Teacher
from genie_cli.student.load import load_student

METRIC = "probe_logits"
"""Key of metrics.json."""
_KEPT = 16
"""Number of logits that are recorded."""
_TOLERANCE = 0.02
"""Relative distance by which another machine's arithmetic may move the logits: a value at the edge between two
codes may round to the other one there."""


@torch.no_grad()
def probe_logits(student: fx.GraphModule, spec: InputSpec) -> list[float]:
    """The first logits of a quantized network for one fixed noise image."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, spec.num_channels, spec.size, spec.size, generator=generator)
    logits: Tensor = student(image)
    return [float(value) for value in logits.flatten()[:_KEPT]]


def compare_with_record(teacher: Teacher, artifact: QuantizedArtifact) -> str:
    """Compare the network's logits with the recorded ones; returns the result in words.

    Raises:
        InputError: another teacher or images of another size, or a network whose logits differ from those that were
            recorded.
    """
    student = load_student(teacher, artifact)
    recorded = artifact.metrics.get(METRIC)
    if not isinstance(recorded, list) or not recorded:
        return "none recorded (an older genie wrote this)"
    own, given = artifact.metadata.input, teacher.input
    if (own.num_channels, own.size) != (given.num_channels, given.size):
        raise InputError(
            f"The network's answer was recorded for an image of {own.num_channels}x{own.size}x{own.size}, and cannot "
            f"be compared for one of {given.num_channels}x{given.size}x{given.size}: leave out --num-channels and "
            "--input-size, the folder says them."
        )
    wanted, found = torch.tensor(recorded, dtype=torch.float64), probe_logits(student, teacher.input)
    distance = float((torch.tensor(found, dtype=torch.float64) - wanted).norm() / wanted.norm().clamp(min=1e-12))
    if not distance <= _TOLERANCE:
        raise InputError(
            f"The stored network's answer to a fixed input differs from the recorded one (relative distance "
            f"{distance:.2g}): its metrics or its tensors were changed. Write it again with 'genie quantize'."
        )
    return f"those that were recorded (relative distance {distance:.1g})"
