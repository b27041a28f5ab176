"""Calibration images and activations through a piece of the network, from one store to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, fx

from genie_cli.models.graph.outputs import as_tuple
from genie_cli.quantization.activations.pool import ActivationPool
from genie_cli.quantization.activations.store import ActivationStore
from genie_cli.runtime.context import RunContext

_ROWS = 16
"""Images copied at once."""


class ImageRows(Protocol):
    """Calibration images, a slice at a time: a tensor, or something that makes them when asked."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Images ``[k, C, H, W]``, float32, normalised for the teacher."""
        ...


def store_images(images: ImageRows, pool: ActivationPool) -> ActivationStore:
    """All images in a store, float32."""
    store = pool.allocate((len(images), *images[0:1].shape[1:]))
    for first in range(0, len(images), _ROWS):
        store.write(first, images[first : first + _ROWS])
    return store


@torch.no_grad()
def run_over_stores(
    graph: fx.GraphModule, inputs: Sequence[ActivationStore], rows: int, pool: ActivationPool, context: RunContext
) -> tuple[ActivationStore, ...]:
    """The graph's outputs for all inputs: computed in float32, kept in the context's arithmetic.

    Args:
        graph: from some tensors to others.
        inputs: the first ones, each ``[n, ...]``.
        rows: how many pass at once; fewer where memory runs out.
        pool: where the outputs are kept.
        context: its dtype and splitter.
    """
    outputs: tuple[ActivationStore, ...] = ()
    num_rows = len(inputs[0])
    for first in range(0, num_rows, rows):
        last = min(first + rows, num_rows)
        batch = as_tuple(context.splitter(graph, *(store.read(first, last).float() for store in inputs)))
        outputs = outputs or tuple(pool.allocate((num_rows, *value.shape[1:]), context.dtype) for value in batch)
        for store, value in zip(outputs, batch, strict=True):
            store.write(first, value)
    return outputs
