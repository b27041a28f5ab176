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
from genie_cli.synthesis.teacher_network import TeacherNetwork

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
    batches = _Batches(teacher, config, context, others, student)
    batches.take_kept()
    batches.make_all()
    result = batches.gathered()
    context.report(StageFinished(STAGE))
    return result


class _Batches:
    """The batches of this process: those that are kept from an earlier run, and those that are still to make."""

    def __init__(
        self,
        teacher: Teacher,
        config: SynthesizeConfig,
        context: RunContext,
        others: Sequence[Teacher],
        student: Student | None,
    ) -> None:
        """Of the arguments of `synthesize_images`."""
        self._teacher, self._config, self._context, self._student = teacher, config, context, student
        self._networks = teacher_networks(teacher, others, config, context)
        self._sizes = batch_sizes(config.num_images, config.batch_size)
        self._own = context.workers.share(len(self._sizes))
        self._progress = _Progress(len(self._sizes), config.num_steps, context)
        self._made: dict[int, Saved] = {}

    def take_kept(self) -> None:
        """Take the batches that an earlier run has finished."""
        for index in self._own:
            if (found := self._context.work.part(_part(index))) is not None:
                self._made[index] = found
                self._progress.row(saved_rows(found)[-1])
                self._progress.pace(index, self._config.num_steps, True)

    def make_all(self) -> None:
        """Make the others, several at once where that pays, and fewer where memory runs out."""
        device = self._context.device
        at_once = batches_at_once(self._config, self._teacher.input, device)
        while waiting := [index for index in self._own if index not in self._made]:
            together = waiting[:at_once]
            make = partial(self._make_together, together)
            if len(together) == 1:
                or_the_size_that_fits(make, self._try_size, self._sizes[together[0]], device)
            elif not fits(make):
                at_once = (len(together) + 1) // 2  # of those that were tried: fewer may have been left than go at once
                self._context.report(
                    Note(f"{len(together)} batches at once do not fit into memory: going on with fewer.", warning=True)
                )

    def gathered(self) -> Synthesis:
        """The images and rows of all processes."""
        none = torch.empty(0, *self._teacher.input.shape)
        images = torch.cat([none, *(self._made[index].tensors["images"] for index in self._own)])
        rows = [row for index in self._own for row in saved_rows(self._made[index])]
        return _gathered(images, rows, self._sizes, self._context.workers)

    def _make_together(self, indices: Sequence[int]) -> None:
        """Make batches side by side."""
        interrupts = self._context.interrupts
        with interrupts.held():
            side_by_side([self._make(index) for index in indices], self._context.device)
        if interrupts.is_asked:
            raise KeyboardInterrupt

    def _make(self, index: int) -> Generator[None, None, None]:
        """Make a batch, step by step, and keep it."""
        for attempt in float32_retried(self._context, _part(index)):
            with attempt:
                networks = [network.running_on(attempt.context) for network in self._networks]
                with closing(self._batch(networks, index, self._sizes[index], attempt.context)) as batch:
                    finished = yield from distill(
                        batch,
                        index,
                        self._config,
                        attempt.context,
                        attempt.checkpoint,
                        self._progress.row,
                        partial(self._progress.pace, index),
                    )
                if finished is not None:
                    self._context.work.finish(_part(index), finished)
                    self._made[index] = finished

    def _try_size(self, batch_size: int) -> None:
        """Take the memory of a step whose batches have at most so many images."""
        largest = max(batch_sizes(self._config.num_images, batch_size))
        with closing(self._batch(self._networks, 0, largest, self._context)) as batch:
            batch.step()

    def _batch(self, networks: Sequence[TeacherNetwork], index: int, size: int, context: RunContext) -> Batch:
        """The batch of an index, with so many images."""
        return Batch(networks, self._teacher, self._student, index, size, self._config, context)


def _part(index: int) -> str:
    """The name of a batch in the work folder."""
    return f"batch{index}"


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
