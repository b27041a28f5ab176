"""The distance of a unit's outputs from the teacher's, each relative to the teacher's own energy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genie_cli.quantization.activations.store import ActivationStore
from genie_cli.runtime.distribution import Workers

_ROWS = 16
"""Images compared at once."""


def relative_errors(
    values: Sequence[ActivationStore], targets: Sequence[ActivationStore], held_out: Tensor, workers: Workers
) -> tuple[float, float | None]:
    """Squared error over the targets' squared norm, summed over the outputs: that of trained and of held-out rows.

    Args:
        values: one store per output, ``[n, ...]``.
        targets: the same shapes.
        held_out: rows that were not trained on; without any the second error is None.
        workers: processes that hold other rows.
    """
    num_rows = len(targets[0])
    is_held_out = torch.zeros(num_rows, dtype=torch.bool)
    is_held_out[held_out] = True
    sums = torch.zeros(len(targets), 2, 2, dtype=torch.float64)  # [output] x [trained, held out] x [error, norm]
    for own, value_store, target_store in zip(sums, values, targets, strict=True):
        for first in range(0, num_rows, _ROWS):
            last = min(first + _ROWS, num_rows)
            value, target = (store.read(first, last).float() for store in (value_store, target_store))
            error, norm = (_squared_norms(rows).cpu() for rows in (value.sub_(target), target))
            for row, chosen in enumerate((~is_held_out[first:last], is_held_out[first:last])):
                own[row] += torch.stack([error[chosen].sum(), norm[chosen].sum()])
    trained, unseen = workers.sum_(sums).unbind(1)
    return sum(relative(trained), 0.0), sum(relative(unseen), 0.0) if len(held_out) else None


def relative(sums: Tensor) -> list[float]:
    """Of rows (squared error, squared norm) ``[K, 2]``: error over norm; 0 for what has no norm."""
    return [error / norm if norm else 0.0 for error, norm in sums.tolist()]


def mean_energies(stores: Sequence[ActivationStore], workers: Workers) -> list[float]:
    """Of each tensor ``[n, C, ...]``: its squares summed over the channels, averaged over images and places.

    Args:
        stores: one per tensor.
        workers: processes that hold other rows.
    """
    sums = torch.zeros(len(stores), 2, dtype=torch.float64)  # [tensor] x [squared norm, places]
    for own, store in zip(sums, stores, strict=True):
        for first in range(0, len(store), _ROWS):
            rows = store.read(first, min(first + _ROWS, len(store))).float()
            own[0] += _squared_norms(rows).sum().cpu()
            own[1] += num_places(rows)
    return [norm / places for norm, places in workers.sum_(sums).tolist()]


def num_places(rows: Tensor) -> int:
    """Elements of one channel of ``[n, C, ...]``, all rows together; of ``[n]``, which has none, all elements."""
    return rows.numel() // (rows.shape[1] if rows.dim() > 1 else 1)


def _squared_norms(rows: Tensor) -> Tensor:
    """Of each row ``[n, ...]``, summed in float64."""
    rows = rows.unsqueeze(-1) if rows.dim() == 1 else rows
    return rows.square().sum(tuple(range(1, rows.dim())), dtype=torch.float64)
