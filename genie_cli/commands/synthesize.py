"""``genie synthesize``: images from a teacher's batch-norm statistics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from genie_cli.commands import options as opt

if TYPE_CHECKING:
    from genie_cli.config import ModelConfig, SynthesizeConfig


def synthesize(
    model: opt.ModelName = None,
    weights: opt.Weights = None,
    input_size: opt.InputSize = None,
    num_channels: opt.NumChannels = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    num_images: opt.NumImages = None,
    num_steps: opt.BatchSteps = None,
    batch_size: opt.SynthesizeBatchSize = None,
    preset: opt.SynthesizePreset = None,
    settings: opt.SynthesizeSettings = None,
    seed: opt.Seed = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    params: opt.ParamsFile = None,
    out: opt.ImagesOut = None,
    log: opt.Log = None,
) -> None:
    """Synthesize calibration images from the batch-norm statistics of a network (GENIE-D)."""
    from genie_cli.config import SynthesizeConfig
    from genie_cli.synthesis.presets import preset_options

    file = opt.read(params)
    model_config = opt.model_config(file, model, weights, input_size, num_channels, mean, std)
    flags = opt.given(
        {
            "num_images": num_images, "num_steps": num_steps, "batch_size": batch_size, "preset": preset,
            "seed": seed, "device": device, "precision": precision, "out": out, "log": log,
        },
        settings,
    )  # fmt: skip
    config = opt.stage_config(SynthesizeConfig, file.section("synthesize"), flags, preset_options, "synthesize")
    _run(model_config, config)


def _run(model_config: ModelConfig, config: SynthesizeConfig) -> None:
    from genie_cli.artifacts.atomic import atomic_write_text
    from genie_cli.artifacts.images import save_images
    from genie_cli.artifacts.metadata import file_sha256
    from genie_cli.commands.display import duration, file_size, note, progress, summary
    from genie_cli.models.zoo import load_teacher
    from genie_cli.runtime.device import resolve_device, resolve_dtype
    from genie_cli.synthesis.distill import batch_sizes, synthesize_images
    from genie_cli.synthesis.export import to_artifact

    opt.check_files(config.out, config.log, model_config.weights)
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.precision, device)
    teacher = load_teacher(model_config)
    if config.batch_size > config.num_images:
        note(f"the batch of {config.batch_size} becomes {config.num_images}, the number of images.")
    started = time.monotonic()
    with progress() as report:
        result = synthesize_images(teacher, config, device, dtype, report)
    images, metadata = to_artifact(result.images, teacher, config, device)
    if config.log is not None:
        lines = [f"{row.batch},{row.step},{row.loss:.6g},{row.latent_lr:.6g}" for row in result.log]
        atomic_write_text(config.log, "\n".join(["batch,step,loss,latent_lr", *lines]) + "\n")
    save_images(config.out, images, metadata)
    sha256 = file_sha256(config.out)
    final = [row.loss for row in result.log if row.step == config.num_steps]
    summary(
        "Synthesized",
        {
            "images": f"{len(images)} of {'x'.join(str(side) for side in images.shape[1:])}, {config.image_dtype}",
            "teacher": f"{teacher.name} ({teacher.sha256[:12]})",
            "batches": " + ".join(str(size) for size in batch_sizes(config.num_images, config.batch_size)),
            "loss": f"{sum(final) / len(final):.4f}",
            "device": f"{device}, {str(dtype).removeprefix('torch.')}",
            "time": duration(time.monotonic() - started),
            "written": f"{config.out} ({file_size(config.out.stat().st_size)}, sha256 {sha256[:12]})",
        },
    )
