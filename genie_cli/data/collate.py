"""Targets of single images as those of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def collate_targets(targets: Sequence[Any]) -> Any:
    """One value for the targets of a batch.

    Args:
        targets: one per image.

    Returns:
        Numbers become a tensor ``[B]``; tensors (or NumPy arrays) of one shape and type a tensor ``[B, ...]``. None
        for each becomes None. All else stays a list, as the boxes of a detector, whose number differs from image to
        image.
    """
    if all(target is None for target in targets):
        return None
    values = [torch.from_numpy(target) if isinstance(target, np.ndarray) else target for target in targets]
    if all(isinstance(value, int | np.integer) for value in values):
        return torch.tensor([int(value) for value in values], dtype=torch.int64)
    if all(isinstance(value, int | float | np.number) for value in values):
        return torch.tensor([float(value) for value in values], dtype=torch.float32)
    if all(isinstance(value, Tensor) for value in values) and len({(v.shape, v.dtype) for v in values}) == 1:
        return torch.stack(values)
    return values


def first_targets(targets: Any, count: int, batch_size: int) -> Any:
    """The targets of a batch's first `count` images, where they are collated already.

    Tensors and lists of the batch's length are cut; so are the values of a mapping.
    """
    if isinstance(targets, Mapping):
        return {key: first_targets(value, count, batch_size) for key, value in targets.items()}
    if isinstance(targets, Tensor | list | tuple) and len(targets) == batch_size:
        return targets[:count]
    return targets
