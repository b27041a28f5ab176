"""Outputs of a network for a batch: on the CPU, finite, whatever their structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from genie_cli.config import InputSpec
from genie_cli.errors import NumbersError
from genie_cli.models.graph.unsupported import unsupported_operation
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Note
from genie_cli.runtime.retry import first_line, may_lack_arithmetic
from genie_cli.runtime.shortage import is_out_of_memory
from genie_cli.student.bad_layer import bad_layer


def finite_outputs(network: nn.Module, images: Tensor, context: RunContext, what: str) -> Any:
    """The outputs on the CPU, in float32 where those of `context` are not finite or cannot be computed.

    Args:
        network: returns a tensor, or several in lists and dicts.
        images: ``[B, C, H, W]`` on the context's device.
        context: what to run on.
        what: words for the batch, such as ``Batch 3 through the network``.

    Raises:
        NumbersError: those of float32 are not finite either.
    """
    try:
        with context.autocast():
            parts = context.splitter.each(lambda part: tree_map_only(Tensor, _on_host, network(part)), images)
    except Exception as error:
        if context.dtype == torch.float32 or not may_lack_arithmetic(error):
            raise
        context.report(Note(f"{what}: {first_line(error)}. The batch is tried again in float32.", warning=True))
        return finite_outputs(network, images, context.in_float32(), what)
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


@torch.no_grad()
def unsupported_evaluation(networks: Sequence[nn.Module], spec: InputSpec, context: RunContext) -> str | None:
    """The operation that keeps a network from being computed in the context's arithmetic, in words.

    Args:
        networks: what will be evaluated, on the context's device.
        spec: their input.
        context: device and arithmetic.

    Returns:
        None where two black images pass, or where these already take more memory than there is.
    """
    images = torch.zeros(2, *spec.shape, device=context.device)
    images = images.contiguous(memory_format=torch.channels_last)
    for network in networks:
        try:
            with context.autocast():
                network(images)
        except Exception as error:
            if is_out_of_memory(error):
                return None
            if not may_lack_arithmetic(error):
                raise
            found = None
            if isinstance(network, fx.GraphModule):
                found = unsupported_operation(network, [images], context.autocast(), backward=False)
            return found or f"the network ({first_line(error)})"
    return None


def _on_host(output: Tensor) -> Tensor:
    return (output.float() if output.is_floating_point() else output).cpu()


def _rows_not_finite(outputs: Any, num_images: int) -> Tensor:
    """The images that have a value which is NaN or infinite, bool ``[B]``."""
    bad = torch.zeros(num_images, dtype=torch.bool)
    for output in tree_leaves(outputs):
        if isinstance(output, Tensor) and output.is_floating_point() and not bool(output.isfinite().all()):
            bad |= ~output.isfinite().reshape(num_images, -1).all(1)
    return bad
