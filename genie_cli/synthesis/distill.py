"""GENIE-D on one batch (Algorithm 1): latents and a generator learn until the images have the teacher's statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence

import torch
from torch import Tensor

from genie_cli.config import SynthesizeConfig
from genie_cli.data.pixel_prior import PixelPrior
from genie_cli.errors import NumbersError
from genie_cli.models.teacher import Teacher
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.determinism import make_generator
from genie_cli.runtime.distribution import SOLO
from genie_cli.runtime.repeated_step import RepeatedStep, is_over
from genie_cli.runtime.state import optimizer_state, prefixed, restore_optimizer, without_prefix
from genie_cli.runtime.work import Saved
from genie_cli.synthesis.discrepancy import Student
from genie_cli.synthesis.image_source import make_source
from genie_cli.synthesis.image_statistics import image_statistics_loss
from genie_cli.synthesis.loss_curve import LogRow, rows_as_facts, saved_rows
from genie_cli.synthesis.schedule import PlateauSchedule
from genie_cli.synthesis.teacher_network import TeacherNetwork
from genie_cli.synthesis.terms import BatchTerms, needs_logits
from genie_cli.synthesis.tone import batch_tone

LOG_EVERY = {"cpu": 10, "cuda": 50}
"""Steps between logged losses, by kind of device: reading one makes a GPU wait."""


def teacher_networks(
    teacher: Teacher, others: Sequence[Teacher], config: SynthesizeConfig, context: RunContext
) -> list[TeacherNetwork]:
    """`teacher` and the others as a step runs them."""
    return [
        TeacherNetwork(one, config, context, teacher.logits if one is teacher and needs_logits(config) else None)
        for one in (teacher, *others)
    ]


class Batch:
    """One batch of images in the making: where they come from, and what optimises that."""

    def __init__(
        self,
        networks: Sequence[TeacherNetwork],
        teacher: Teacher,
        student: Student | None,
        index: int,
        size: int,
        config: SynthesizeConfig,
        context: RunContext,
    ) -> None:
        """Start batch `index` of `size` images, under its own seeds.

        Args:
            networks: the teachers as a step runs them, that of `teacher` first.
            teacher: the network whose input and classes the images have.
            student: a quantized network that the images are to tell from `teacher`; None: no such term.
            index: number of the batch, from 0.
            size: its images.
            config: budget and recipe.
            context: where it is computed, in which arithmetic.
        """
        device = context.device
        self._networks, self._config, self._context = networks, config, context
        spec, num_classes = teacher.input, teacher.num_classes or 1
        self._place = PixelPrior.of_input(spec).placement(device)
        self._terms = BatchTerms(spec, num_classes, index, size, config, device, student)
        self._source = make_source(spec, num_classes, index, self._terms.labels, config, device)
        self._tone = batch_tone(index, size, config, device)
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
        self._learn = RepeatedStep(self._optimization_step, context, name=f"batch {index + 1}")

    def code_lr(self) -> Tensor:
        """The rate of what learns image by image, a copy on the device; 0 where nothing learns."""
        return self._schedule.lr * float(self._source.codes is not None)

    def step(self) -> None:
        """One optimizer step."""
        self._source.prepare()
        self._learn()

    def close(self) -> None:
        """Give back what the recorded step holds."""
        self._learn.close()

    def finish(self) -> tuple[Tensor, Tensor]:
        """The last forward pass: images ``[B, C, H, W]`` in the teacher's normalised space, and their loss.

        No steps come after that.
        """
        self.close()  # the pass may need the memory of the recording
        self._source.prepare()
        with torch.no_grad():
            images, loss = self._images_and_loss()
            return self._place(images), loss

    def set_generator_lr(self, steps_done: int) -> None:
        """Lower the generator's rate, which decays in stairs."""
        config = self._config
        if steps_done % config.generator_lr_decay_every == 0:
            stairs = steps_done // config.generator_lr_decay_every
            self._generator_lr.fill_(config.generator_lr * config.generator_lr_decay**stairs)

    def _optimization_step(self) -> None:
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

    def _images_and_loss(self) -> tuple[Tensor, Tensor]:
        """Images from latents (or pixels), through the teachers with swing, to the loss (Eq. 5 and other terms).

        The images are standardized (`PixelPrior`): all that learns takes the same steps in pixels for every network.
        """
        config = self._config
        with self._context.autocast():
            images, targets = self._source.images(self._step_index)
        toned = images if self._tone is None else self._tone(images)
        seen = self._terms.seen(toned, self._step_index)
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
        terms = self._terms.loss(toned, seen, targets, logits[0], features[0])
        if terms is not None:
            loss = loss + terms
        return toned.detach(), loss

    def own_terms_told(self) -> str:
        """A sentence on the user's own terms, which may be what is not finite; empty without any."""
        names = self._terms.own_names()
        return f" It may be a term of your own: {', '.join(names)}." if names else ""

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


def distill(
    batch: Batch,
    index: int,
    config: SynthesizeConfig,
    context: RunContext,
    name: str,
    on_row: Callable[[LogRow], None],
    on_pace: Callable[[int, bool], None],
) -> Generator[None, None, Saved | None]:
    """Take a batch's steps, from its newest checkpoint on; one step per turn.

    Where the run is interrupted, it ends behind a checkpoint of the step at work.

    Args:
        batch: the batch.
        index: its number, from 0.
        config: the number of steps.
        context: where checkpoints are kept.
        name: what they are called.
        on_row: receives each logged step.
        on_pace: receives the number of steps that are over, and whether an earlier run took them.

    Returns:
        Its images ``[B, C, H, W]``, those of the last forward pass as the authors keep them, and its loss curve; None
        where the run was interrupted.

    Raises:
        NumbersError: the loss is not finite.
    """
    num_steps, every = config.num_steps, context.log_every or LOG_EVERY[context.device.type]
    rows: list[LogRow] = []
    taken = 0
    if (left := context.work.checkpoint(name, SOLO)) is not None:
        batch.restore(left.tensors)
        rows, taken = saved_rows(left), left.facts["step"]

    def log(step: int, loss_and_rate: Tensor) -> None:
        figures = torch.cat([loss_and_rate, batch.num_finite.view(1).to(loss_and_rate.dtype)])  # a GPU waits once
        loss, rate, num_finite = figures.tolist()
        if num_finite < min(step, num_steps - 1) or not math.isfinite(loss):  # the last pass only looks
            raise NumbersError(
                f"Batch {index + 1}: the loss is NaN or infinite at step {num_finite + 1:.0f}; lower rates may help, "
                f"such as --set generator_lr=0.001 and --set latent_lr=0.01.{batch.own_terms_told()}"
            )
        rows.append(LogRow(index + 1, step, loss, rate))
        on_row(rows[-1])

    on_pace(taken, True)
    for step in range(taken + 1, num_steps):
        is_logged = step == 1 or step % every == 0
        rate = batch.code_lr() if is_logged else None  # the step that follows changes it
        batch.step()
        batch.set_generator_lr(step)
        is_asked, is_checked = context.interrupts.is_asked, rate is not None
        if rate is not None:
            log(step, torch.stack([batch.loss, rate]))
        elif is_asked:
            is_checked = int(batch.num_finite) == step
        if is_checked and (is_asked or context.work.is_due(name, SOLO)):
            state = Saved(batch.state(), {"step": step, **rows_as_facts(rows)})
            context.work.save_checkpoint(name, state, SOLO)
        if is_asked:
            return None
        if is_logged or is_over(step, context.device):
            on_pace(step, False)
        yield
    images, loss = batch.finish()
    log(num_steps, torch.stack([loss, batch.code_lr()]))
    on_pace(num_steps, False)
    return Saved({"images": images.cpu().clone().contiguous()}, rows_as_facts(rows))
