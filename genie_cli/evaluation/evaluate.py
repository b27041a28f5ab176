"""Figures of a network, and of its teacher beside it, over all images of a source."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from genie_cli.data.samples import Samples
from genie_cli.evaluation.keys import OUTPUTS, PER_CLASS, drop_key, teacher_key
from genie_cli.evaluation.metrics.choose import Metrics
from genie_cli.evaluation.metrics.metric import described
from genie_cli.evaluation.outputs import finite_outputs
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Advanced, StageFinished, StageStarted

STAGE = "evaluate"


@dataclass(frozen=True)
class Evaluation:
    """Figures of one evaluation.

    Attributes:
        num_images: images seen.
        own: those of the network.
        teacher: those of the teacher on the same images, where there is one.
        pair: those of both together, such as their agreement.
        compared: figures that the teacher's value and the difference are given of; None: all that are one number.
    """

    num_images: int
    own: Mapping[str, Any]
    teacher: Mapping[str, Any] | None = None
    pair: Mapping[str, Any] = field(default_factory=dict)
    compared: tuple[str, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """The figures under the keys that metrics files use; NaN and infinity, which JSON lacks, become None.

        Own figures come first, then those of the teacher with the differences, those of the pair, and at the end those
        per class and per output.
        """
        figures: dict[str, Any] = {"num_images": self.num_images, **self.own}
        compared = [name for name, value in self.own.items() if isinstance(value, float)]
        if self.compared is not None:
            compared = [name for name in self.compared if name in self.own]
        for place, name in enumerate(compared):
            if self.teacher is not None and isinstance(self.teacher.get(name), float):
                figures[teacher_key(name)] = self.teacher[name]
                figures[drop_key(name, place == 0)] = float(f"{self.teacher[name] - self.own[name]:.10g}")
        figures |= self.pair
        last = {key: figures.pop(key) for key in (PER_CLASS, OUTPUTS) if key in figures}
        finite: dict[str, Any] = _finite({**figures, **last})
        return finite


@torch.no_grad()
def evaluate(
    network: nn.Module,
    samples: Samples,
    metrics: Metrics,
    batch_size: int,
    context: RunContext,
    teacher: nn.Module | None = None,
) -> Evaluation:
    """Run `network` (and `teacher`, to compare) over all of `samples`.

    Args:
        network: from normalised images ``[B, C, H, W]`` to outputs that the metrics take.
        samples: images, with the targets that the metrics take.
        metrics: what is measured; each is used for this evaluation alone.
        batch_size: images at once, fewer where memory runs out; the result does not depend on it.
        context: what to run on; its processes share the batches, and each returns the whole result.
        teacher: the network to compare with.

    Raises:
        InputError: an image, outputs or targets that cannot be used, or code of the user's that fails.
        NumbersError: outputs that are not finite, in float32 too.
        WorkerError: another process has ended.
    """
    workers, num_batches = context.workers, samples.num_batches(batch_size)
    assert workers.size == 1 or (num_batches is not None and all(metric.is_summed for metric in metrics.all()))
    context.report(StageStarted(STAGE, samples.num_images, "images"))
    # Each process takes whole batches: in a batch of another size, the last bits of the outputs may differ.
    own_batches = None if num_batches is None else workers.share(num_batches)
    done = 0
    places = itertools.count() if own_batches is None else own_batches
    for index, (images, targets) in zip(places, samples.batches(batch_size, own_batches), strict=False):
        images = images.to(context.device).contiguous(memory_format=torch.channels_last)
        batch = f"Batch {index + 1}"
        outputs = decoded(metrics, finite_outputs(network, images, context, f"{batch} through the network"))
        if metrics.own is not None:
            metrics.own.update(outputs, targets)
        if teacher is not None:
            what = f"{batch} through the teacher"
            teacher_outputs = decoded(metrics, finite_outputs(teacher, images, context, what))
            if metrics.teacher is not None:
                metrics.teacher.update(teacher_outputs, targets)
            if metrics.pair is not None:
                metrics.pair.update(outputs, teacher_outputs)
        done += len(images)
        shown = done if samples.num_images is None else min(done * workers.size, samples.num_images)
        values = metrics.own.running() if metrics.own is not None else {}
        context.report(Advanced(STAGE, shown, values=values))  # the others are about as far
    seen = torch.tensor([done])
    for counts in (seen, *(counts for metric in metrics.all() for counts in metric.counts())):
        workers.sum_(counts)
    context.report(StageFinished(STAGE))
    return Evaluation(
        num_images=int(seen),
        own=metrics.own.compute() if metrics.own is not None else {},
        teacher=metrics.teacher.compute() if metrics.teacher is not None else None,
        pair=metrics.pair.compute() if metrics.pair is not None else {},
        compared=metrics.own.compared if metrics.own is not None else (),
    )


def decoded(metrics: Metrics, outputs: Any) -> Any:
    """Outputs as the metrics take them.

    Raises:
        InputError: the user's function fails.
    """
    if metrics.decode is None:
        return outputs
    with metrics.decode.running(f"for outputs that are {described(outputs)}"):
        return metrics.decode.function(outputs)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value
