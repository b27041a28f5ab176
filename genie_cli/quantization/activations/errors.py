"""The distance of a unit's output from the teacher's, relative to the teacher's own energy."""

from __future__ import annotations

import torch
from torch import Tensor

from genie_cli.quantization.activations.store import ActivationStore
from genie_cli.runtime.distribution import Workers

_ROWS = 16
"""Images compared at once."""


def relative_errors(
    values: ActivationStore, targets: ActivationStore, held_out: Tensor, workers: Workers
) -> tuple[float, float | None]:
    """Squared error over the targets' squared norm: that of trained rows and that of held-out rows.

    Args:
        values: ``[n, ...]``.
        targets: the same shape.
        held_out: rows that were not trained on; without any the second error is None.
        workers: processes that hold other rows.
    """
    is_held_out = torch.zeros(len(values), dtype=torch.bool)
    is_held_out[held_out] = True
    sums = torch.zeros(2, 2, dtype=torch.float64)  # [trained, held out] x [error, norm]
    for first in range(0, len(values), _ROWS):
        last = min(first + _ROWS, len(values))
        value, target = (store.read(first, last).float() for store in (values, targets))
        error, norm = (_squared_norms(rows).cpu() for rows in (value.sub_(target), target))
        for row, chosen in enumerate((~is_held_out[first:last], is_held_out[first:last])):
            sums[row] += torch.stack([error[chosen].sum(), norm[chosen].sum()])
    errors = [error / norm if norm else 0.0 for error, norm in workers.sum_(sums).tolist()]
    return errors[0], errors[1] if len(held_out) else None


def _squared_norms(rows: Tensor) -> Tensor:
    """Of each row ``[n, ...]``, summed in float64."""
    return rows.square().sum(tuple(range(1, rows.dim())), dtype=torch.float64)
