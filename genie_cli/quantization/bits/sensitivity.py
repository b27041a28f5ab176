"""Sensitivities: the cost of quantizing one weight or activation alone to some bits, at the network's output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from genie_cli.artifacts.metadata import validate
from genie_cli.artifacts.metrics import encode_metrics, read_metrics
from genie_cli.config import Frozen
from genie_cli.errors import InputError
from genie_cli.models.teacher import Teacher

Costs = dict[str, dict[int, float]]
"""Layer or site -> bits -> cost."""


class Sensitivities(Frozen):
    """The costs of one network, as a file that ``genie sensitivity`` writes.

    The cost is the mean KL divergence per image between the network's class probabilities and those of the network with
    this one tensor quantized, in nats; without class scores the squared error of the outputs over their own squared
    norm, summed over the outputs.
    """

    kind: Literal["sensitivity"] = "sensitivity"
    format_version: Literal[1] = 1
    teacher: str
    teacher_sha256: str
    images_sha256: str
    num_images: int = Field(ge=1)
    loss: Literal["kl", "squared"]
    method: Literal["estimate", "exact"]
    protocol: str
    weight_grid: str
    weights: dict[str, dict[int, float]]
    """Layer -> bits of its weight -> cost."""
    activations: dict[str, dict[int, float]]
    """Site -> bits -> cost."""

    def encoded(self) -> bytes:
        """The file's content."""
        return encode_metrics(self.model_dump(mode="json"))


def read_sensitivities(path: Path, teacher: Teacher) -> Sensitivities:
    """The sensitivities of `teacher` in a file.

    Raises:
        InputError: a file that cannot be read or holds something else, or sensitivities of another network.
    """
    fields = read_metrics(path)
    if fields.get("kind") != "sensitivity":
        raise InputError(f"{path} holds no sensitivities: give a file written by 'genie sensitivity'.")
    found = validate(Sensitivities, fields, path)
    if found.teacher_sha256 not in teacher.known_sha256:
        raise InputError(
            f"{path} holds the sensitivities of '{found.teacher}' with weights {found.teacher_sha256[:12]}, and this "
            f"network '{teacher.name}' has {teacher.sha256[:12]}: write it anew with 'genie sensitivity'."
        )
    return found


def costs_of(found: Mapping[str, Mapping[int, float]], names: Mapping[str, object], what: str) -> Costs:
    """The costs of some layers or sites.

    Raises:
        InputError: one of them has none, as under another protocol.
    """
    missing = sorted(set(names) - set(found))
    if missing:
        raise InputError(
            f"The sensitivities lack {what} '{missing[0]}', which this protocol quantizes: write them anew with "
            "'genie sensitivity' and the same --protocol."
        )
    return {name: dict(found[name]) for name in names}
