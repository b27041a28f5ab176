"""Calibration images and activations through a piece of the network, from one store to the next."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, fx

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
def run_over_store(
    graph: fx.GraphModule, inputs: ActivationStore, rows: int, pool: ActivationPool, context: RunContext
) -> ActivationStore:
    """The graph's output for all inputs: computed in float32, kept in the context's arithmetic.

    Args:
        graph: from one tensor to another.
        inputs: the first tensor, ``[n, ...]``.
        rows: how many pass at once; fewer where memory runs out.
        pool: where the output is kept.
        context: its dtype and splitter.
    """
    outputs: ActivationStore | None = None
    for first in range(0, len(inputs), rows):
        batch = context.splitter(graph, inputs.read(first, min(first + rows, len(inputs))).float())
        if outputs is None:
            outputs = pool.allocate((len(inputs), *batch.shape[1:]), context.dtype)
        outputs.write(first, batch)
    assert outputs is not None
    return outputs
