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
from genie_cli.runtime.progress import Advanced, Reporter, StageFinished, StageStarted, silent
from genie_cli.synthesis.generator import Generator
from genie_cli.synthesis.schedule import PlateauSchedule
from genie_cli.synthesis.statistics import image_statistics_loss, statistics_graph
from genie_cli.synthesis.swing import SwingShift, draw_offsets, swing_strided_convolutions

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
) -> Synthesis:
    """Synthesize `config.num_images` images from the batch-norm statistics of `teacher`.

    Each batch depends on the seed and its own index alone.

    Args:
        teacher: the pre-trained network.
        config: budget and recipe.
        device: where to compute.
        dtype: arithmetic of the networks; statistics, losses and optimizer state stay float32.
        report: receives progress.

    Raises:
        InputError: a network without batch norms.
    """
    graph = statistics_graph(teacher.graph, dtype)
    shifts = swing_strided_convolutions(graph) if config.swing else []
    move(graph, device)
    sizes = batch_sizes(config.num_images, config.batch_size)
    report(StageStarted(STAGE, config.num_steps * len(sizes)))
    images, log = [], []
    for index, size in enumerate(sizes):

        def on_step(step: int, loss: float, latent_lr: float, index: int = index) -> None:
            log.append(LogRow(index + 1, step, loss, latent_lr))
            done = index * config.num_steps + step
            report(Advanced(STAGE, done, f"batch {index + 1}/{len(sizes)}", {"loss": loss}))

        images.append(_distill_batch(teacher, graph, shifts, index, size, config, device, dtype, on_step))
    report(StageFinished(STAGE))
    return Synthesis(torch.cat(images), tuple(log))


def _distill_batch(
    teacher: Teacher,
    graph: fx.GraphModule,
    shifts: list[SwingShift],
    index: int,
    size: int,
    config: SynthesizeConfig,
    device: torch.device,
    dtype: torch.dtype,
    on_step: Callable[[int, float, float], None],
) -> Tensor:
    generator = _new_generator(teacher, index, config).to(device)
    draws = make_generator(torch.device("cpu"), config.seed, "latents", index)
    latents = nn.Parameter(torch.randn(size, config.latent_dim, generator=draws).to(device))
    swings = make_generator(torch.device("cpu"), config.seed, "swing", index)
    schedule = PlateauSchedule(
        config.latent_lr, config.latent_lr_factor, config.latent_lr_patience, config.latent_min_lr, device
    )
    latent_optimizer = torch.optim.Adam([latents], lr=schedule.lr, fused=True)
    generator_optimizer = torch.optim.Adam(generator.parameters(), lr=config.generator_lr, fused=True)
    step = 0
    while True:
        step += 1
        draw_offsets(shifts, swings)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            images: Tensor = generator(latents)
        batch = images.to(dtype).contiguous(memory_format=torch.channels_last)
        loss = torch.stack(graph(batch)).sum()
        if config.image_loss_weight:
            loss = loss + config.image_loss_weight * image_statistics_loss(images)
        if step % LOG_EVERY == 0 or step in (1, config.num_steps):
            on_step(step, float(loss.detach()), float(schedule.lr))
        if step == config.num_steps:
            return images.detach().cpu().contiguous()  # those of the last forward pass, as the authors keep them
        latent_optimizer.zero_grad(set_to_none=True)
        generator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        latent_optimizer.step()
        generator_optimizer.step()
        schedule.step(loss.detach())
        decay = config.generator_lr_decay ** (step // config.generator_lr_decay_every)
        for group in generator_optimizer.param_groups:
            group["lr"] = config.generator_lr * decay


def _new_generator(teacher: Teacher, index: int, config: SynthesizeConfig) -> Generator:
    """A generator with PyTorch's default initialisation under the batch's own seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "generator", index))
        generator = Generator(config.latent_dim, teacher.input)
    return generator.train().to(memory_format=torch.channels_last)
