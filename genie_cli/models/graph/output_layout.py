"""The layout in which a network returns a tensor, and the normal form in which a captured graph computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

ANY_BATCH = "B"
"""The batch in a shape that people read."""


@dataclass(frozen=True)
class Layout:
    """The layout of a tensor as the network returns it.

    Attributes:
        num_dims: number of its dimensions.
        batch_dim: the one that is the batch.
        rows: entries of that dimension per image, image by image: 4 of a ``[4 B, C]``.
    """

    num_dims: int
    batch_dim: int = 0
    rows: int = 1

    def normal(self, returned: Tensor) -> Tensor:
        """The tensor in the normal form; as it is where it does not have this layout."""
        if returned.dim() != self.num_dims or returned.shape[self.batch_dim] % self.rows:
            return returned
        value = returned.movedim(self.batch_dim, 0) if self.batch_dim else returned
        if self.rows > 1:
            value = value.unflatten(0, (value.shape[0] // self.rows, self.rows))
        return value.unsqueeze(1) if value.dim() == 1 else value

    def returned(self, normal: Tensor) -> Tensor:
        """Undo `normal`."""
        value = normal
        if self.num_dims == 1 and self.rows == 1:
            value = value.squeeze(1)
        if self.rows > 1:
            value = value.flatten(0, 1)
        return value.movedim(0, self.batch_dim) if self.batch_dim else value

    def described(self, shape: Sequence[int]) -> str:
        """The shape as the network returns it, ``[B, 10]``, of ``shape`` per image in the normal form."""
        sides = [*map(str, shape)]
        if self.rows > 1:
            sides = [f"{self.rows}*{ANY_BATCH}", *sides[1:]]
        else:
            sides.insert(self.batch_dim, ANY_BATCH)
        return f"[{', '.join(sides[: self.num_dims])}]"


NO_ROWS = Layout(0, 0, 0)
"""That of a value without a row for each image."""


def differs(layout: Layout) -> bool:
    """True if what is returned is not the normal form itself."""
    return layout.batch_dim != 0 or layout.rows != 1 or layout.num_dims == 1


def layout_of(value: Tensor, images: fx.Node) -> Layout:
    """The layout of a traced value; 0 rows where no dimension is the batch."""
    batch = images.meta["val"].shape[0]
    for dim, side in enumerate(value.shape):
        others = [other for place, other in enumerate(value.shape) if place != dim]
        if any(free_symbols(other) for other in others):
            continue
        multiple = _multiple(side, batch)
        if multiple == 1 or (multiple > 1 and dim == 0):
            return Layout(value.dim(), dim, multiple)
    return Layout(value.dim(), 0, 0)


def _multiple(side: Any, batch: Any) -> int:
    """The number of times that the batch is contained in a side; 0 where it is not."""
    if not isinstance(side, torch.SymInt) or not isinstance(batch, torch.SymInt):
        return 0
    quotient = side.node.expr / batch.node.expr
    return int(quotient) if quotient.is_Integer and quotient > 0 else 0


def free_symbols(side: Any) -> set[Any]:
    """The symbols that a traced side is counted by; none of a plain number."""
    return set(side.node.expr.free_symbols) if isinstance(side, torch.SymInt) else set()
