"""The probe: a quantized network's outputs for a fixed input, recorded with it and compared by ``genie verify``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from genie_cli.artifacts.quantized import QuantizedArtifact
from genie_cli.config import InputSpec
from genie_cli.errors import InputError
from genie_cli.models.graph.outputs import as_tuple, outputs_of
from genie_cli.models.teacher import Teacher
from genie_cli.student.load import load_student

METRIC = "probe_outputs"
"""Key of metrics.json."""
_FORMER_METRIC = "probe_logits"
"""The key in folders of format 1: the first values of the one output."""
_KEPT = 16
"""Number of values that are recorded of each output, evenly spread over it where it has more."""
_TOLERANCE = 0.02
"""Relative distance by which another machine's arithmetic may move an output: a value at the edge between two
codes may round to the other one there."""


def probe_outputs(student: fx.GraphModule, spec: InputSpec) -> dict[str, list[float]]:
    """Some values of each output of a quantized network for one fixed noise image, by the output's name."""
    return {name: _some(values).tolist() for name, values in _answers(student, spec).items()}


@torch.no_grad()
def _answers(student: fx.GraphModule, spec: InputSpec) -> dict[str, Tensor]:
    """All values of each output, flat."""
    image = torch.randn(1, *spec.shape, generator=torch.Generator().manual_seed(0))
    outputs = zip(outputs_of(student).names, as_tuple(student(image)), strict=True)
    return {name: output.flatten() for name, output in outputs}


def _some(values: Tensor) -> Tensor:
    """At most `_KEPT` values, evenly spread."""
    return values[:: max(1, -(-len(values) // _KEPT))]


def compare_with_record(teacher: Teacher, artifact: QuantizedArtifact) -> str:
    """Compare the network's outputs with the recorded ones; returns the result in words.

    Raises:
        InputError: another teacher or images of another size, or a network whose outputs differ from those that were
            recorded.
    """
    student = load_student(teacher, artifact)
    recorded, choose = _recorded(artifact, outputs_of(student).names)
    if not recorded:
        return "none recorded (an older genie wrote this)"
    own, given = artifact.metadata.input.shape, teacher.input.shape
    if own != given:
        raise InputError(
            f"The network's answer was recorded for an image of {_by(own)}, and cannot be compared for one of "
            f"{_by(given)}: leave out --num-channels and --input-size, the folder says them."
        )
    found = _answers(student, teacher.input)
    distances = {name: _distance(choose(found[name]), wanted) for name, wanted in recorded.items()}
    for name, distance in distances.items():
        if not distance <= _TOLERANCE:
            raise InputError(
                f"The stored network's {name} for a fixed input differs from the recorded one (relative distance "
                f"{distance:.2g}): its metrics or its tensors were changed. Write it again with 'genie quantize'."
            )
    named = f"{', '.join(distances)}: " if len(distances) > 1 else ""
    return f"{named}those that were recorded (relative distance {max(distances.values()):.1g})"


def _recorded(
    artifact: QuantizedArtifact, names: Sequence[str]
) -> tuple[dict[str, list[float]], Callable[[Tensor], Tensor]]:
    """Output -> recorded values, nothing where none are; and the choice of these among all values.

    Raises:
        InputError: outputs of another network.
    """
    recorded = artifact.metrics.get(METRIC)
    former = artifact.metrics.get(_FORMER_METRIC)
    if recorded is None and isinstance(former, list) and former:
        return {names[0]: former}, lambda values: values[:_KEPT]
    if not isinstance(recorded, dict):
        return {}, _some
    if set(recorded) != set(names):
        raise InputError(
            f"The folder records the outputs {', '.join(sorted(recorded))}, and the network returns "
            f"{', '.join(sorted(names))}: name the same --model as at its quantization."
        )
    return recorded, _some


def _distance(found: Tensor, wanted: list[float]) -> float:
    own, other = found.double(), torch.tensor(wanted, dtype=torch.float64)
    return float((own - other).norm() / other.norm().clamp(min=1e-12)) if own.shape == other.shape else float("inf")


def _by(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))
