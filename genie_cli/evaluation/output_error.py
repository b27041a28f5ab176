"""The distance of a quantized network's outputs from its teacher's, output by output, where no classes are decided."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from genie_cli.data.labeled import LabeledImages
from genie_cli.errors import NumbersError
from genie_cli.models.graph.outputs import as_tuple, outputs_of
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Advanced, StageFinished, StageStarted

STAGE = "evaluate"


@torch.no_grad()
def output_errors(
    network: fx.GraphModule, teacher: fx.GraphModule, data: LabeledImages, batch_size: int, context: RunContext
) -> dict[str, float]:
    """Output -> squared error over all images and values, over the teacher's own squared norm.

    Args:
        network: the quantized network, with the outputs of its graph (`load_student`).
        teacher: the captured network that it was made of.
        data: images; their labels are not read.
        batch_size: images at once, fewer where memory runs out.
        context: what to run on; its processes share the batches, and each returns the whole result.

    Raises:
        NumbersError: outputs that are not finite.
    """
    names = outputs_of(teacher).names
    sums = torch.zeros(len(names), 2, dtype=torch.float64)
    own_batches = context.workers.share(data.num_batches(batch_size))
    context.report(StageStarted(STAGE, data.num_images, "images"))
    done = 0
    for images, _ in data.batches(batch_size, own_batches):
        batch = images.to(context.device).contiguous(memory_format=torch.channels_last)
        found, wanted = (_answers(each, batch, context) for each in (network, teacher))
        for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
            sums[place] += torch.stack([(one - other).square().sum(), other.square().sum()]).cpu()
        done += len(images)
        context.report(Advanced(STAGE, min(done * context.workers.size, data.num_images)))
    context.workers.sum_(sums)
    context.report(StageFinished(STAGE))
    for name, row in zip(names, sums, strict=True):
        if not bool(row.isfinite().all()):
            raise NumbersError(f"Output '{name}' holds NaN or infinity: check the network's weights and the images.")
    return {name: error / norm if norm else 0.0 for name, (error, norm) in zip(names, sums.tolist(), strict=True)}


def _answers(network: fx.GraphModule, images: Tensor, context: RunContext) -> list[Tensor]:
    with context.autocast():
        return [output.double() for output in as_tuple(context.splitter(network, images))]
