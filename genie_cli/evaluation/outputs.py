"""Outputs of a network for a batch: on the CPU, finite, whatever their structure."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from genie_cli.errors import NumbersError
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Note
from genie_cli.student.bad_layer import bad_layer


def finite_outputs(network: nn.Module, images: Tensor, context: RunContext, what: str) -> Any:
    """The outputs on the CPU, in float32 where those of `context` are not finite.

    Args:
        network: returns a tensor, or several in lists and dicts.
        images: ``[B, C, H, W]`` on the context's device.
        context: what to run on.
        what: words for the batch, such as ``Batch 3 through the network``.

    Raises:
        NumbersError: those of float32 are not finite either.
    """
    with context.autocast():
        parts = context.splitter.each(lambda part: tree_map_only(Tensor, _on_host, network(part)), images)
    outputs = parts[0] if len(parts) == 1 else tree_map(lambda *each: torch.cat(each), *parts)
    bad = _rows_not_finite(outputs, len(images))
    num_bad = int(bad.sum())
    if not num_bad:
        return outputs
    with context.autocast():
        layer = bad_layer(network, images[bad.to(images.device)][:1])
    where = f", first at layer '{layer}'" if layer is not None else ""
    kind = "logits" if isinstance(outputs, Tensor) and outputs.ndim == 2 else "outputs"
    problem = f"{what}: the {kind} of {num_bad} of {len(images)} images are NaN or infinite{where}."
    if context.dtype == torch.float32:
        raise NumbersError(f"{problem} Check the network's weights, and that the images are normalised for it.")
    context.report(Note(f"{problem} The batch is tried again in float32.", warning=True))
    return finite_outputs(network, images, context.in_float32(), what)


def _on_host(output: Tensor) -> Tensor:
    return (output.float() if output.is_floating_point() else output).cpu()


def _rows_not_finite(outputs: Any, num_images: int) -> Tensor:
    """The images that have a value which is NaN or infinite, bool ``[B]``."""
    bad = torch.zeros(num_images, dtype=torch.bool)
    for output in tree_leaves(outputs):
        if isinstance(output, Tensor) and output.is_floating_point() and not bool(output.isfinite().all()):
            bad |= ~output.isfinite().reshape(num_images, -1).all(1)
    return bad
