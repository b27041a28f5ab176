"""Synthesize images: learn latents and a generator per batch against the statistics loss (Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial

import torch
from torch import Tensor

from genie_cli.artifacts.work_folder import NO_WORK, RETRIED, Saved, Work
from genie_cli.config import InputSpec, SynthesizeConfig
from genie_cli.errors import NumbersError
from genie_cli.models.teacher import Teacher
from genie_cli.runtime.determinism import make_generator
from genie_cli.runtime.distribution import SOLO, Workers
from genie_cli.runtime.progress import Advanced, Note, Reporter, StageFinished, StageStarted, silent
from genie_cli.runtime.replay import WARMUP_STEPS, ReplayedStep
from genie_cli.runtime.shortage import fits
from genie_cli.runtime.side_by_side import side_by_side
from genie_cli.runtime.state import optimizer_state, prefixed, restore_optimizer, without_prefix
from genie_cli.synthesis.batch_fit import or_the_size_that_fits
from genie_cli.synthesis.discrepancy import Student
from genie_cli.synthesis.image_source import make_source
from genie_cli.synthesis.schedule import PlateauSchedule
from genie_cli.synthesis.statistics import image_statistics_loss
from genie_cli.synthesis.teacher_network import TeacherNetwork
from genie_cli.synthesis.terms import BatchTerms, needs_logits

STAGE = "synthesize"
LOG_EVERY = 10
"""Steps between logged losses: reading one makes a GPU wait."""
_VALUES_THAT_FILL = 128 * 3 * 128 * 128
"""Values of images that are taken to keep a GPU busy (not measured); batches of fewer advance together."""
_MOST_AT_ONCE = 8


@dataclass(frozen=True)
class LogRow:
    """One logged step: batch and step count from 1."""

    batch: int
    step: int
    loss: float
    latent_lr: float


@dataclass(frozen=True)
class Synthesis:
    """Synthesized images ``[n, C, S, S]`` (float32, normalised) and their loss curve."""

    images: Tensor
    log: tuple[LogRow, ...]


def batch_sizes(num_images: int, batch_size: int) -> list[int]:
    """Sizes that differ by one at most and never exceed `batch_size`, unless one image would be left alone.

    100 images in batches of 128 are one batch of 100; 130 are two of 65, since the statistics of a
    batch of 2 would say little.
    """
    count = max(1, min(-(-num_images // batch_size), num_images // 2))
    return [num_images // count + (i < num_images % count) for i in range(count)]


def synthesize_images(
    teacher: Teacher,
    config: SynthesizeConfig,
    device: torch.device,
    dtype: torch.dtype,
    report: Reporter = silent,
    workers: Workers = SOLO,
    others: Sequence[Teacher] = (),
    student: Student | None = None,
    work: Work = NO_WORK,
) -> Synthesis:
    """Synthesize `config.num_images` images from the batch-norm statistics of `teacher`.

    Each batch depends on the seed and its own index alone, so that the images are the same whatever
    the number of processes.

    Args:
        teacher: the pre-trained network.
        config: budget and recipe.
        device: where to compute.
        dtype: arithmetic of the networks; statistics, losses and optimizer state stay float32.
        report: receives progress.
        workers: processes that share the batches; each returns all images.
        others: more teachers of the same input size, whose statistics the images fit too (MixMix); the
            loss is the mean over the teachers, and the images are in the normalised space of `teacher`.
        student: a quantized network that the images are to tell from `teacher` (ZAQ).
        work: where finished batches and the state of the one at work are kept, and found again.

    Raises:
        InputError: a network without batch norms.
        NumbersError: the loss of a batch is not finite, in float32 too.
        DeviceError: a batch does not fit into memory; a size that does.
    """
    spec = teacher.input
    networks = [
        TeacherNetwork(one, spec, config, device, dtype, with_logits=one is teacher and needs_logits(config))
        for one in (teacher, *others)
    ]
    sizes = batch_sizes(config.num_images, config.batch_size)
    own = workers.share(len(sizes))
    total = config.num_steps * len(sizes)
    report(StageStarted(STAGE, total))
    made: dict[int, Saved] = {}
    steps_done: dict[int, int] = {}

    def on_row(row: LogRow) -> None:
        steps_done[row.batch] = row.step
        done = min(sum(steps_done.values()) * workers.size, total)  # the others are about as far
        report(Advanced(STAGE, done, f"batch {row.batch}/{len(sizes)}", {"loss": row.loss}))

    def distill(index: int) -> Generator[None, None, None]:
        try:
            batch = _Batch(networks, teacher, student, index, sizes[index], config, device, dtype)
            made[index] = yield from _distill_batch(batch, index, config.num_steps, on_row, work, f"batch{index}")
            return
        except NumbersError as error:
            if dtype == torch.float32:
                raise
            report(Note(f"{error} It is tried again in float32.", warning=True))
        exact = [network.in_float32() for network in networks]
        batch = _Batch(exact, teacher, student, index, sizes[index], config, device, torch.float32)
        # From its start, and kept apart: a checkpoint comes by the clock, and may hold the cause already.
        name = f"batch{index}{RETRIED}"
        made[index] = yield from _distill_batch(batch, index, config.num_steps, on_row, work, name)

    def distill_all(indices: Sequence[int]) -> None:
        side_by_side([distill(index) for index in indices], device)

    def try_size(batch_size: int) -> None:
        largest = max(batch_sizes(config.num_images, batch_size))
        batch = _Batch(networks, teacher, student, 0, largest, config, device, dtype)
        for _ in range(min(config.num_steps, WARMUP_STEPS + 1 if device.type == "cuda" else 1)):
            batch.step()  # on CUDA the recorded step takes memory of its own

    for index in own:
        if (found := work.part(f"batch{index}")) is not None:
            made[index] = found
            on_row(_rows(found)[-1])
    at_once = batches_at_once(config, spec, device)
    while waiting := [index for index in own if index not in made]:
        together = waiting[:at_once]
        if len(together) == 1:
            or_the_size_that_fits(partial(distill_all, together), try_size, sizes[together[0]], device)
        elif not fits(partial(distill_all, together)):
            at_once = (len(together) + 1) // 2  # of those that were tried: fewer may have been left than go at once
            report(Note(f"{len(together)} batches at once do not fit into memory: going on with fewer.", warning=True))
    none = torch.empty(0, spec.num_channels, spec.size, spec.size)
    images = torch.cat([none, *(made[index].tensors["images"] for index in own)])
    result = _gathered(images, [row for index in own for row in _rows(made[index])], sizes, workers)
    report(StageFinished(STAGE))
    return result


def batches_at_once(config: SynthesizeConfig, spec: InputSpec, device: torch.device) -> int:
    """The number of batches that advance together: as configured, else several where a batch is small for a GPU."""
    if config.batches_at_once is not None:
        return config.batches_at_once
    values = config.batch_size * spec.num_channels * spec.size**2
    return min(_MOST_AT_ONCE, max(1, _VALUES_THAT_FILL // values)) if device.type == "cuda" else 1


def _gathered(images: Tensor, log: Sequence[LogRow], sizes: Sequence[int], workers: Workers) -> Synthesis:
    """The images and loss rows of all processes, in the order of the batches."""
    all_images = workers.all_gather_rows(images)
    rows = torch.tensor([[row.batch, row.step, row.loss, row.latent_lr] for row in log], dtype=torch.float64)
    all_rows = workers.all_gather_rows(rows.view(-1, 4)).tolist()
    order = [index for rank in range(workers.size) for index in range(rank, len(sizes), workers.size)]
    parts = dict(zip(order, all_images.split([sizes[index] for index in order]), strict=True))
    logged = sorted((LogRow(int(b), int(s), loss, lr) for b, s, loss, lr in all_rows), key=lambda r: (r.batch, r.step))
    return Synthesis(torch.cat([parts[index] for index in range(len(sizes))]), tuple(logged))


class _Batch:
    """One batch of images in the making: where they come from, and what optimises that."""

    def __init__(
        self,
        networks: Sequence[TeacherNetwork],
        teacher: Teacher,
        student: Student | None,
        index: int,
        size: int,
        config: SynthesizeConfig,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._networks, self._config, self._dtype, self._device = networks, config, dtype, device
        spec, num_classes = teacher.input, teacher.num_classes
        self._terms = BatchTerms(spec, num_classes, index, size, config, device, student)
        self._source = make_source(spec, num_classes, index, self._terms.labels, config, device)
        swings = make_generator(torch.device("cpu"), config.seed, "swing", index)
        self._offsets = [network.draw_swings(config.num_steps, swings, device) for network in networks]
        self._step_index = torch.zeros(1, dtype=torch.int64, device=device)
        rate = config.latent_lr if config.generator else config.pixel_lr
        self._schedule = PlateauSchedule(
            rate, config.latent_lr_factor, config.latent_lr_patience, config.latent_min_lr, device
        )
        self._generator_lr = torch.tensor(config.generator_lr, device=device)
        groups = [([] if self._source.codes is None else [self._source.codes], self._schedule.lr)]
        groups.append((list(self._source.weights()), self._generator_lr))
        self._optimizers = [
            torch.optim.Adam(parameters, lr=lr, fused=True, capturable=device.type == "cuda")
            for parameters, lr in groups
            if parameters
        ]
        self.loss = torch.zeros((), device=device)
        """Loss of the last step."""
        self.num_finite = torch.zeros((), dtype=torch.int64, device=device)
        """Steps whose loss was finite, counted there: reading a loss makes a GPU wait."""
        self._replayed = ReplayedStep(self._learn, device)

    @property
    def code_lr(self) -> float:
        """The rate of what learns image by image; 0 where nothing does."""
        return 0.0 if self._source.codes is None else float(self._schedule.lr)

    def state(self) -> dict[str, Tensor]:
        """All that changes from step to step, as copies on the CPU."""
        state = {
            "step_index": self._step_index,
            "generator_lr": self._generator_lr,
            **prefixed("source", self._source.state()),
            **prefixed("schedule", self._schedule.state()),
        }
        for i, optimizer in enumerate(self._optimizers):
            state.update(prefixed(f"optimizer{i}", optimizer_state(optimizer)))
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self._step_index.copy_(state["step_index"])
        self._generator_lr.copy_(state["generator_lr"])
        self.num_finite.copy_(state["step_index"].squeeze(0))  # a state is kept behind a check
        self._source.restore(without_prefix("source", state))
        self._schedule.restore(without_prefix("schedule", state))
        for i, optimizer in enumerate(self._optimizers):
            restore_optimizer(optimizer, without_prefix(f"optimizer{i}", state))

    def step(self) -> None:
        """One optimizer step."""
        self._source.prepare()
        self._replayed()

    def finish(self) -> tuple[Tensor, Tensor]:
        """The last forward pass: images ``[B, C, S, S]`` and their loss."""
        self._source.prepare()
        with torch.no_grad():
            return self._images_and_loss()

    def set_generator_lr(self, steps_done: int) -> None:
        """The generator's rate decays in stairs."""
        config = self._config
        if steps_done % config.generator_lr_decay_every == 0:
            stairs = steps_done // config.generator_lr_decay_every
            self._generator_lr.fill_(config.generator_lr * config.generator_lr_decay**stairs)

    def _images_and_loss(self) -> tuple[Tensor, Tensor]:
        config = self._config
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            images, targets = self._source.images(self._step_index)
        seen = self._terms.seen(images, self._step_index)
        losses, logits, features = zip(
            *(
                network(seen, offsets.index_select(0, self._step_index).squeeze(0))
                for network, offsets in zip(self._networks, self._offsets, strict=True)
            ),
            strict=True,
        )
        loss = config.statistics_weight * (losses[0] if len(losses) == 1 else torch.stack(losses).mean())
        if config.image_loss_weight:
            loss = loss + config.image_loss_weight * image_statistics_loss(images)
        terms = self._terms.loss(images, seen, targets, logits[0], features[0])
        if terms is not None:
            loss = loss + terms
        return images.detach(), loss

    def _learn(self) -> None:
        loss = self._images_and_loss()[1]
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self._optimizers:
            optimizer.step()
        self._schedule.step(loss.detach())
        self._step_index += 1
        self.loss.copy_(loss.detach())
        self.num_finite += self.loss.isfinite()


def _distill_batch(
    batch: _Batch, index: int, num_steps: int, on_row: Callable[[LogRow], None], work: Work, name: str
) -> Generator[None, None, Saved]:
    """Take a batch's steps, from the newest checkpoint called `name` on, and keep the result; one step per turn."""
    rows, taken = [], 0
    if (left := work.checkpoint(name)) is not None:
        batch.restore(left.tensors)
        rows, taken = _rows(left), left.facts["step"]

    def log(step: int, loss: float, rate: float) -> None:
        num_finite, counted = int(batch.num_finite), min(step, num_steps - 1)  # the last pass only looks
        if num_finite < counted or not math.isfinite(loss):
            raise NumbersError(
                f"Batch {index + 1}: the loss is NaN or infinite at step {num_finite + 1}; lower rates may help, such "
                "as --set generator_lr=0.001 and --set latent_lr=0.01."
            )
        rows.append(LogRow(index + 1, step, loss, rate))
        on_row(rows[-1])

    for step in range(taken + 1, num_steps):
        rate = batch.code_lr if _is_logged(step) else 0.0  # the step that follows changes it
        batch.step()
        batch.set_generator_lr(step)
        if _is_logged(step):
            log(step, float(batch.loss), rate)
            if work.is_due(name):
                work.save_checkpoint(name, batch.state(), {"step": step, "log": [astuple(row) for row in rows]})
        yield
    images, loss = batch.finish()
    log(num_steps, float(loss), batch.code_lr)
    # the images are those of the last forward pass, as the authors keep them
    finished = Saved({"images": images.cpu().clone().contiguous()}, {"log": [astuple(row) for row in rows]})
    work.finish(f"batch{index}", finished.tensors, finished.facts)
    return finished


def _rows(saved: Saved) -> list[LogRow]:
    return [LogRow(*row) for row in saved.facts["log"]]


def _is_logged(step: int) -> bool:
    return step == 1 or step % LOG_EVERY == 0
