"""Top-1, top-5, agreement with the teacher and per-class accuracy over a data source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from genie_cli.config import InputSpec
from genie_cli.data.labeled import LabeledImages
from genie_cli.errors import NumbersError
from genie_cli.evaluation.decision import Decision
from genie_cli.models.graph.unsupported import unsupported_operation
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Advanced, Note, StageFinished, StageStarted
from genie_cli.runtime.retry import first_line, may_lack_arithmetic
from genie_cli.runtime.shortage import is_out_of_memory
from genie_cli.student.bad_layer import bad_layer

STAGE = "evaluate"


@dataclass(frozen=True)
class Evaluation:
    """Figures of one evaluation; shares are percentages.

    Attributes:
        num_images: images seen.
        top1: share whose label is the most likely class.
        top5: share whose label is among the five most likely classes (or all, where there are fewer); None of one
            output, which tells two classes apart.
        per_class: class -> its top-1 accuracy; classes without images are left out.
        teacher_top1: the teacher's top-1 on the same images, if a student was evaluated.
        agreement: share of images for which student and teacher predict the same class.
    """

    num_images: int
    top1: float
    top5: float | None
    per_class: dict[str, float]
    teacher_top1: float | None = None
    agreement: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The figures under the keys that metrics files use."""
        figures: dict[str, Any] = {"num_images": self.num_images, "top1": self.top1}
        if self.top5 is not None:
            figures["top5"] = self.top5
        if self.teacher_top1 is not None and self.agreement is not None:
            figures |= {
                "teacher_top1": self.teacher_top1,
                "drop": round(self.teacher_top1 - self.top1, 4),
                "agreement": self.agreement,
            }
        return {**figures, "per_class": self.per_class}


@torch.no_grad()
def evaluate(
    network: nn.Module,
    data: LabeledImages,
    num_classes: int,
    batch_size: int,
    context: RunContext,
    teacher: nn.Module | None = None,
    threshold: float = 0.0,
) -> Evaluation:
    """Run `network` (and `teacher`, to compare) over all of `data`.

    Args:
        network: from normalised images ``[B, C, S, S]`` to logits ``[B, num_classes]``.
        data: images with labels.
        num_classes: width of the logits; 1: a binary network, of the classes 0 and 1.
        batch_size: images at once, fewer where memory runs out; the result does not depend on it.
        context: what to run on; its processes share the batches, and each returns the whole result.
        teacher: the network to compare predictions with.
        threshold: of a binary network: an output above it is class 1, see `decision_of`.

    Raises:
        InputError: an image that cannot be used.
        NumbersError: logits that are not finite, in float32 too.
        WorkerError: another process has ended.
    """
    num_images, decision = data.num_images, Decision(num_classes, threshold)
    workers = context.workers
    context.report(StageStarted(STAGE, num_images, "images"))
    # Each process takes whole batches: in a batch of another size, the last bits of the logits may differ.
    own_batches = workers.share(data.num_batches(batch_size))
    seen, right = torch.zeros(2, decision.num_classes, dtype=torch.int64)
    right_top5 = right_teacher = agreeing = done = 0
    for index, (images, labels) in zip(own_batches, data.batches(batch_size, own_batches), strict=True):
        images = images.to(context.device).contiguous(memory_format=torch.channels_last)
        batch = f"Batch {index + 1}"
        logits = _finite_logits(network, images, context, f"{batch} through the network")
        guesses = decision.classes(logits)
        if teacher is not None:
            what = f"{batch} through the teacher"
            teacher_guesses = decision.classes(_finite_logits(teacher, images, context, what))
            right_teacher += int((teacher_guesses == labels).sum())
            agreeing += int((teacher_guesses == guesses).sum())
        top5 = logits.topk(min(5, num_classes), dim=1).indices
        right_top5 += int((top5 == labels[:, None]).any(1).sum())
        seen += _count(labels, decision.num_classes)
        right += _count(labels[guesses == labels], decision.num_classes)
        done += len(labels)
        shown = min(done * workers.size, num_images)  # the others are about as far
        context.report(Advanced(STAGE, shown, values={"top1": 100 * int(right.sum()) / done}))
    for counts in (seen, right):
        workers.sum_(counts)
    sums = torch.tensor([right_top5, right_teacher, agreeing])
    right_top5, right_teacher, agreeing = workers.sum_(sums).tolist()
    context.report(StageFinished(STAGE))

    def share(count: int) -> float:
        return round(100 * count / num_images, 4)

    names = data.class_names or [str(i) for i in range(decision.num_classes)]
    per_class = {
        name: round(100 * int(right[label]) / int(seen[label]), 4)
        for label, name in enumerate(names[: decision.num_classes])
        if seen[label]
    }
    return Evaluation(
        num_images=num_images,
        top1=share(int(right.sum())),
        top5=None if decision.is_binary else share(right_top5),
        per_class=per_class,
        teacher_top1=share(right_teacher) if teacher is not None else None,
        agreement=share(agreeing) if teacher is not None else None,
    )


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


def _finite_logits(network: nn.Module, images: Tensor, context: RunContext, what: str) -> Tensor:
    """The logits on the CPU, in float32 where those of `context` are not finite or cannot be computed.

    Raises:
        NumbersError: those of float32 are not finite either.
    """
    try:
        with context.autocast():
            logits: Tensor = context.splitter(network, images).float().cpu()
    except Exception as error:
        if context.dtype == torch.float32 or not may_lack_arithmetic(error):
            raise
        context.report(Note(f"{what}: {first_line(error)}. The batch is tried again in float32.", warning=True))
        return _finite_logits(network, images, context.in_float32(), what)
    bad = int((~logits.isfinite()).any(1).sum())
    if not bad:
        return logits
    with context.autocast():
        layer = bad_layer(network, images[~logits.isfinite().all(1)][:1])
    where = f", first at layer '{layer}'" if layer is not None else ""
    problem = f"{what}: the logits of {bad} of {len(images)} images are NaN or infinite{where}."
    if context.dtype == torch.float32:
        raise NumbersError(f"{problem} Check the network's weights, and that the images are normalised for it.")
    context.report(Note(f"{problem} The batch is tried again in float32.", warning=True))
    return _finite_logits(network, images, context.in_float32(), what)


def _count(labels: Tensor, num_classes: int) -> Tensor:
    return torch.bincount(labels, minlength=num_classes)
