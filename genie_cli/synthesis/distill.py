"""Synthesize images: learn latents and a generator a batch against the statistics loss (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from genie_cli.config import SynthesizeConfig
from genie_cli.models.graph.placement import move
from genie_cli.models.teacher import Teacher
from genie_cli.runtime.determinism import derive_seed, make_generator
from genie_cli.runtime.distribution import SOLO, Workers
from genie_cli.runtime.progress import Advanced, Reporter, StageFinished, StageStarted, silent
from genie_cli.runtime.replay import ReplayedStep
from genie_cli.synthesis.generator import Generator
from genie_cli.synthesis.schedule import PlateauSchedule
from genie_cli.synthesis.statistics import image_statistics_loss, statistics_graph
from genie_cli.synthesis.swing import SwingShift, draw_offsets, set_offsets, swing_strided_convolutions

STAGE = "synthesize"
LOG_EVERY = 10
"""Steps between logged losses: reading one makes a GPU wait."""


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

    Raises:
        InputError: a network without batch norms.
    """
    graph = statistics_graph(teacher.graph, dtype)
    shifts = swing_strided_convolutions(graph) if config.swing else []
    move(graph, device)
    sizes = batch_sizes(config.num_images, config.batch_size)
    own = workers.share(len(sizes))
    total = config.num_steps * len(sizes)
    report(StageStarted(STAGE, total))
    images, log = [], []
    for position, index in enumerate(own):
        size = sizes[index]

        def on_step(step: int, loss: float, latent_lr: float, index: int = index, position: int = position) -> None:
            log.append(LogRow(index + 1, step, loss, latent_lr))
            done = min((position * config.num_steps + step) * workers.size, total)  # the others are about as far
            report(Advanced(STAGE, done, f"batch {index + 1}/{len(sizes)}", {"loss": loss}))

        batch = _Batch(teacher, graph, shifts, index, size, config, device, dtype)
        images.append(_distill_batch(batch, config.num_steps, on_step))
    spec = teacher.input
    none = torch.empty(0, spec.num_channels, spec.size, spec.size)
    all_images = workers.all_gather_rows(torch.cat([none, *images]))
    rows = torch.tensor([[row.batch, row.step, row.loss, row.latent_lr] for row in log], dtype=torch.float64)
    all_rows = workers.all_gather_rows(rows.view(-1, 4)).tolist()
    report(StageFinished(STAGE))
    # They come process by process: put the batches in their order.
    order = [index for rank in range(workers.size) for index in range(rank, len(sizes), workers.size)]
    parts = dict(zip(order, all_images.split([sizes[index] for index in order]), strict=True))
    logged = sorted((LogRow(int(b), int(s), loss, lr) for b, s, loss, lr in all_rows), key=lambda r: (r.batch, r.step))
    return Synthesis(torch.cat([parts[index] for index in range(len(sizes))]), tuple(logged))


class _Batch:
    """One batch of images in the making: its latents, its generator and what optimises them."""

    def __init__(
        self,
        teacher: Teacher,
        graph: fx.GraphModule,
        shifts: list[SwingShift],
        index: int,
        size: int,
        config: SynthesizeConfig,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._graph, self._shifts, self._config, self._dtype = graph, shifts, config, dtype
        self._generator = _new_generator(teacher, index, config).to(device)
        draws = make_generator(torch.device("cpu"), config.seed, "latents", index)
        self._latents = nn.Parameter(torch.randn(size, config.latent_dim, generator=draws).to(device))
        swings = make_generator(torch.device("cpu"), config.seed, "swing", index)
        self._offsets = draw_offsets(config.num_steps, len(shifts), swings).to(device)
        self._step_index = torch.zeros(1, dtype=torch.int64, device=device)
        self.schedule = PlateauSchedule(
            config.latent_lr, config.latent_lr_factor, config.latent_lr_patience, config.latent_min_lr, device
        )
        self._generator_lr = torch.tensor(config.generator_lr, device=device)
        recorded = device.type == "cuda"
        self._optimizers = [
            torch.optim.Adam([self._latents], lr=self.schedule.lr, fused=True, capturable=recorded),
            torch.optim.Adam(self._generator.parameters(), lr=self._generator_lr, fused=True, capturable=recorded),
        ]
        self.loss = torch.zeros((), device=device)
        """Loss of the last step."""
        self.step = ReplayedStep(self._learn, device)

    def set_generator_lr(self, steps_done: int) -> None:
        """The generator's rate decays in stairs."""
        config = self._config
        if steps_done % config.generator_lr_decay_every == 0:
            stairs = steps_done // config.generator_lr_decay_every
            self._generator_lr.fill_(config.generator_lr * config.generator_lr_decay**stairs)

    def images_and_loss(self) -> tuple[Tensor, Tensor]:
        """Forward pass of one step."""
        set_offsets(self._shifts, self._offsets.index_select(0, self._step_index).squeeze(0))
        device_type = self._latents.device.type
        with torch.autocast(device_type, self._dtype, enabled=self._dtype != torch.float32):
            images: Tensor = self._generator(self._latents)
        batch = images.to(self._dtype).contiguous(memory_format=torch.channels_last)
        loss = torch.stack(self._graph(batch)).sum()
        if self._config.image_loss_weight:
            loss = loss + self._config.image_loss_weight * image_statistics_loss(images)
        return images.detach(), loss

    def _learn(self) -> None:
        loss = self.images_and_loss()[1]
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self._optimizers:
            optimizer.step()
        self.schedule.step(loss.detach())
        self._step_index += 1
        self.loss.copy_(loss.detach())


def _distill_batch(batch: _Batch, num_steps: int, on_step: Callable[[int, float, float], None]) -> Tensor:
    for step in range(1, num_steps):
        latent_lr = float(batch.schedule.lr) if _is_logged(step) else 0.0  # the step that follows changes it
        batch.step()
        batch.set_generator_lr(step)
        if _is_logged(step):
            on_step(step, float(batch.loss), latent_lr)
    with torch.no_grad():
        images, loss = batch.images_and_loss()
    on_step(num_steps, float(loss), float(batch.schedule.lr))
    return images.cpu().contiguous()  # those of the last forward pass, as the authors keep them


def _is_logged(step: int) -> bool:
    return step == 1 or step % LOG_EVERY == 0


def _new_generator(teacher: Teacher, index: int, config: SynthesizeConfig) -> Generator:
    """A generator with PyTorch's default initialisation under the batch's own seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "generator", index))
        generator = Generator(config.latent_dim, teacher.input)
    return generator.train().to(memory_format=torch.channels_last)
