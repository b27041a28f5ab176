"""The loss of a whole quantized network on images mixed in pairs: what its units have not learned from.

On the calibration images themselves units are overfit, and a change that makes the answers better can raise the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from genie_cli.models.graph.outputs import as_tuple
from genie_cli.quantization.activations.passing import ImageRows
from genie_cli.quantization.augmentation import mixed_with_next
from genie_cli.quantization.reconstruction.loss import Compare
from genie_cli.runtime.context import RunContext


@torch.no_grad()
def mixed_loss(
    student: nn.Module,
    teacher: nn.Module,
    images: ImageRows,
    rows: int,
    compare: Compare,
    weights: Sequence[float],
    context: RunContext,
) -> float:
    """The loss in float32, averaged over all images of all processes, each mixed with the next of its batch.

    Args:
        student: the quantized network, on the device.
        teacher: the network in float, on the device.
        images: the calibration images, ``[n, C, H, W]``; with several processes, this one's share of them.
        rows: images of a batch.
        compare: the loss of one output.
        weights: of each output; 0: it is not compared.
        context: where it is computed; its processes hold other images.
    """
    sums = torch.zeros(2, dtype=torch.float64)  # loss, images
    for first in range(0, len(images), rows):
        mixed = mixed_with_next(images[first : first + rows].to(context.device).float())
        sums[1] += len(mixed)
        for value, target, weight in zip(as_tuple(student(mixed)), as_tuple(teacher(mixed)), weights, strict=True):
            if weight:
                sums[0] += float(compare(value, target)[0]) * weight * len(mixed)
    total, num_images = context.workers.sum_(sums).tolist()
    return float(total / num_images)
