"""The distance of a student's outputs from its teacher's, which needs no labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genie_cli.evaluation.metrics.metric import Figures, Metric

_SUMS = ("noise", "signal", "cosine", "images")


class Fidelity(Metric):
    """Distances of every output; of several outputs also the worst of each.

    With the student's output s and the teacher's t over all images: ``relative_error`` = ||s - t|| / ||t||;
    ``sqnr_db`` = 10 log10(||t||^2 / ||s - t||^2), the signal-to-quantization-noise ratio in decibels; ``cosine`` = the
    mean over the images of <s, t> / (||s|| ||t||). Sums are kept in float64.
    """

    name, takes = "fidelity", "floats, a tensor per output"

    def __init__(self, outputs: Sequence[str]) -> None:
        """Sum up nothing yet.

        Args:
            outputs: names of the tensors, in the order in which both networks give them.
        """
        self._names = tuple(outputs)
        self._sums = torch.zeros(len(self._names), len(_SUMS), dtype=torch.float64)

    def update(self, outputs: Any, targets: Any) -> None:
        """Take the student's outputs, and the teacher's: a tensor ``[B, ...]``, or a tuple of them."""
        own, theirs = (each if isinstance(each, tuple) else (each,) for each in (outputs, targets))
        if not len(own) == len(theirs) == len(self._names):
            raise self.refused(outputs)
        for row, (output, wanted) in enumerate(zip(own, theirs, strict=True)):
            student, teacher = (each.double().flatten(1) for each in (output, wanted))
            product = (student * teacher).sum(1)
            norms = student.norm(dim=1) * teacher.norm(dim=1)
            # Two outputs of zeros are alike.
            cosine = torch.where(norms > 0, product / norms.clamp(min=1e-300), (student == teacher).all(1).double())
            sums = [(student - teacher).square(), teacher.square(), cosine]
            self._sums[row] += torch.stack([*(each.sum() for each in sums), torch.tensor(float(len(student)))])

    def compute(self) -> Figures:
        """The worst figures, and those of every output where there are several."""
        each = {name: _distances(row) for name, row in zip(self._names, self._sums.tolist(), strict=True)}
        figures: Figures = {
            "sqnr_db": min(one["sqnr_db"] for one in each.values()),
            "relative_error": max(one["relative_error"] for one in each.values()),
            "cosine": min(one["cosine"] for one in each.values()),
        }
        return {**figures, "outputs": each} if len(each) > 1 else figures

    def counts(self) -> list[Tensor]:
        """The sums of each output."""
        return [self._sums]


def _distances(row: list[float]) -> dict[str, float]:
    noise, signal, cosine, num_images = row
    ratio = math.inf if signal == 0 < noise else noise / signal if noise else 0.0
    return {
        "sqnr_db": math.inf if ratio == 0 else -math.inf if ratio == math.inf else -10 * math.log10(ratio),
        "relative_error": math.sqrt(ratio),
        "cosine": cosine / max(1.0, num_images),
    }
