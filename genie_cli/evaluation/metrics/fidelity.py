"""The distance of a student's outputs from its teacher's, which needs no labels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from genie_cli.evaluation.metrics.metric import Figures, Metric

_SUMS = ("noise", "signal", "cosine", "images")
_MOST_OUTPUTS = 64


class Fidelity(Metric):
    """Distances of every output; of several outputs also the worst of each.

    With the student's output s and the teacher's t over all images: ``relative_error`` = ||s - t|| / ||t||;
    ``sqnr_db`` = 10 log10(||t||^2 / ||s - t||^2), the signal-to-quantization-noise ratio in decibels; ``cosine`` = the
    mean over the images of <s, t> / (||s|| ||t||). Sums are kept in float64.
    """

    name, takes = "fidelity", "floats, one tensor or several in lists and dicts"

    def __init__(self) -> None:
        """Sum up nothing yet."""
        self._names: list[str] = []
        self._sums = torch.zeros(_MOST_OUTPUTS, len(_SUMS), dtype=torch.float64)

    def update(self, outputs: Any, targets: Any) -> None:
        """Take the student's outputs, and the teacher's, of one structure."""
        own, theirs = _named(outputs), _named(targets)
        if not own or len(own) > _MOST_OUTPUTS or own.keys() != theirs.keys():
            raise self.refused(outputs)
        self._names = list(own)
        for row, (name, output) in enumerate(own.items()):
            student, teacher = (each.double().reshape(len(each), -1) for each in (output, theirs[name]))
            product = (student * teacher).sum(1)
            norms = student.norm(dim=1) * teacher.norm(dim=1)
            # Two outputs of zeros are alike.
            cosine = torch.where(norms > 0, product / norms.clamp(min=1e-300), (student == teacher).all(1).double())
            sums = [(student - teacher).square(), teacher.square(), cosine]
            self._sums[row] += torch.stack([*(each.sum() for each in sums), torch.tensor(float(len(student)))])

    def compute(self) -> Figures:
        """The worst figures, and those of every output where there are several."""
        each = {name: _distances(row) for name, row in zip(self._names, self._sums.tolist(), strict=False)}
        if not each:
            return {}
        figures: Figures = {
            "sqnr_db": min(one["sqnr_db"] for one in each.values()),
            "relative_error": max(one["relative_error"] for one in each.values()),
            "cosine": min(one["cosine"] for one in each.values()),
        }
        return {**figures, "outputs": each} if len(each) > 1 else figures

    def counts(self) -> list[Tensor]:
        """The sums of each output."""
        return [self._sums]


def _named(outputs: Any) -> dict[str, Tensor]:
    """Name -> output, of one tensor or several; nothing where one is no batch of floats."""
    leaves, _ = tree_flatten_with_path(outputs)
    found = {keystr(path).replace("['", "").replace("']", "").strip("[]") or "output": leaf for path, leaf in leaves}
    if not all(isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 0 for leaf in found.values()):
        return {}
    return found


def _distances(row: list[float]) -> dict[str, float]:
    noise, signal, cosine, num_images = row
    ratio = math.inf if signal == 0 < noise else noise / signal if noise else 0.0
    return {
        "sqnr_db": math.inf if ratio == 0 else -math.inf if ratio == math.inf else -10 * math.log10(ratio),
        "relative_error": math.sqrt(ratio),
        "cosine": cosine / max(1.0, num_images),
    }
