"""Synthesize an image set: batches over processes, several at once where that pays, each kept once it is finished."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from genie_cli.config import SynthesizeConfig
from genie_cli.models.teacher import Teacher
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.distribution import Workers
from genie_cli.runtime.progress import Advanced, Note, Paced, StageFinished, StageStarted
from genie_cli.runtime.retry import float32_retried
from genie_cli.runtime.shortage import fits
from genie_cli.runtime.side_by_side import side_by_side
from genie_cli.runtime.work import Saved
from genie_cli.synthesis.batch_fit import or_the_size_that_fits
from genie_cli.synthesis.batches import batch_sizes, batches_at_once
from genie_cli.synthesis.discrepancy import Student
from genie_cli.synthesis.distill import Batch, distill, teacher_networks
from genie_cli.synthesis.loss_curve import LogRow, saved_rows

STAGE = "synthesize"


@dataclass(frozen=True)
class Synthesis:
    """Synthesized images ``[n, C, H, W]`` (float32, normalised) and their loss curve."""

    images: Tensor
    log: tuple[LogRow, ...]


def synthesize_images(
    teacher: Teacher,
    config: SynthesizeConfig,
    context: RunContext,
    others: Sequence[Teacher] = (),
    student: Student | None = None,
) -> Synthesis:
    """Synthesize `config.num_images` images from the batch-norm statistics of `teacher`.

    Each batch depends on the seed and its own index alone, so that the images are the same whatever
    the number of processes.

    Args:
        teacher: the pre-trained network.
        config: budget and recipe.
        context: what to run on; each of its processes returns all images.
        others: more teachers of the same input size, whose statistics the images fit too (MixMix); the
            loss is the mean over the teachers, and the images are in the normalised space of `teacher`.
        student: a quantized network that the images are to tell from `teacher` (ZAQ).

    Raises:
        KeyboardInterrupt: the user has interrupted; what was done is kept.
        InputError: a network without batch norms.
        NumbersError: the loss of a batch is not finite, in float32 too.
        DeviceError: a batch does not fit into memory; a size that does.
    """
    spec, workers, work = teacher.input, context.workers, context.work
    networks = teacher_networks(teacher, others, config, context)
    sizes = batch_sizes(config.num_images, config.batch_size)
    own = workers.share(len(sizes))
    progress = _Progress(len(sizes), config.num_steps, context)
    made: dict[int, Saved] = {}

    def make(index: int) -> Generator[None, None, None]:
        part = f"batch{index}"
        for attempt in float32_retried(context, part):
            with attempt:
                own_networks = [network.running_on(attempt.context) for network in networks]
                with closing(
                    Batch(own_networks, teacher, student, index, sizes[index], config, attempt.context)
                ) as batch:
                    finished = yield from distill(
                        batch,
                        index,
                        config,
                        attempt.context,
                        attempt.checkpoint,
                        progress.row,
                        partial(progress.pace, index),
                    )
                if finished is not None:
                    work.finish(part, finished)
                    made[index] = finished

    def make_together(indices: Sequence[int]) -> None:
        with context.interrupts.held():
            side_by_side([make(index) for index in indices], context.device)
        if context.interrupts.is_asked:
            raise KeyboardInterrupt

    def try_size(batch_size: int) -> None:
        largest = max(batch_sizes(config.num_images, batch_size))
        with closing(Batch(networks, teacher, student, 0, largest, config, context)) as batch:
            batch.step()

    for index in own:
        if (found := work.part(f"batch{index}")) is not None:
            made[index] = found
            progress.row(saved_rows(found)[-1])
            progress.pace(index, config.num_steps, True)
    at_once = batches_at_once(config, spec, context.device)
    while waiting := [index for index in own if index not in made]:
        together = waiting[:at_once]
        if len(together) == 1:
            or_the_size_that_fits(partial(make_together, together), try_size, sizes[together[0]], context.device)
        elif not fits(partial(make_together, together)):
            at_once = (len(together) + 1) // 2  # of those that were tried: fewer may have been left than go at once
            context.report(
                Note(f"{len(together)} batches at once do not fit into memory: going on with fewer.", warning=True)
            )
    none = torch.empty(0, *spec.shape)
    images = torch.cat([none, *(made[index].tensors["images"] for index in own)])
    result = _gathered(images, [row for index in own for row in saved_rows(made[index])], sizes, workers)
    context.report(StageFinished(STAGE))
    return result


class _Progress:
    """The steps of all batches, of this process's own and, as far as these are, of the others'."""

    def __init__(self, num_batches: int, num_steps: int, context: RunContext) -> None:
        """Say that so many batches of so many steps begin."""
        self._num_batches, self._total, self._context = num_batches, num_batches * num_steps, context
        self._learned: dict[int, int] = {}
        self._paced: dict[int, int] = {}
        context.report(StageStarted(STAGE, self._total))

    def row(self, row: LogRow) -> None:
        """Say how far a batch is, and its loss."""
        self._learned[row.batch] = row.step
        message = f"batch {row.batch}/{self._num_batches}"
        self._context.report(Advanced(STAGE, self._done(self._learned), message, {"loss": row.loss}))

    def pace(self, index: int, step: int, found: bool) -> None:
        """Say at which step a batch is; `found`: these steps were taken by an earlier run."""
        self._paced[index] = step
        done = self._done(self._paced)
        self._context.report(Paced(STAGE, done, done / self._total, found))

    def _done(self, steps: Mapping[int, int]) -> int:
        """Steps of all processes; the others are about as far as this one."""
        return min(sum(steps.values()) * self._context.workers.size, self._total)


def _gathered(images: Tensor, log: Sequence[LogRow], sizes: Sequence[int], workers: Workers) -> Synthesis:
    """The images and rows of all processes, which come process by process, in the order of the batches."""
    all_images = workers.all_gather_rows(images)
    rows = torch.tensor([[row.batch, row.step, row.loss, row.latent_lr] for row in log], dtype=torch.float64)
    all_rows = workers.all_gather_rows(rows.view(-1, 4)).tolist()
    order = [index for rank in range(workers.size) for index in range(rank, len(sizes), workers.size)]
    parts = dict(zip(order, all_images.split([sizes[index] for index in order]), strict=True))
    logged = sorted((LogRow(int(b), int(s), loss, lr) for b, s, loss, lr in all_rows), key=lambda r: (r.batch, r.step))
    return Synthesis(torch.cat([parts[index] for index in range(len(sizes))]), tuple(logged))
