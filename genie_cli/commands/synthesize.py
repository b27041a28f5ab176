"""``genie synthesize``: images from a teacher's batch-norm statistics."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from genie_cli.commands import options as opt

_RECIPE, _OUTPUT = "Recipe", "Output"


def synthesize(
    model: opt.ModelName = None,
    weights: opt.Weights = None,
    input_size: opt.InputSize = None,
    num_channels: opt.NumChannels = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    num_images: Annotated[
        int | None,
        typer.Option(
            "--n",
            "--num-images",
            help="Images to synthesize. \\[default: 1024]",
            rich_help_panel=_RECIPE,
            show_default=False,
        ),
    ] = None,
    num_steps: Annotated[
        int | None,
        typer.Option(
            "--num-steps", help="Steps a batch. \\[default: 4000]", rich_help_panel=_RECIPE, show_default=False
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            help="Images optimised together. \\[default: 128]",
            rich_help_panel=_RECIPE,
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="Named recipe. \\[default: genie]", rich_help_panel=_RECIPE, show_default=False),
    ] = None,
    settings: opt.Settings = None,
    seed: opt.Seed = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    params: opt.ParamsFile = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Image set to write. \\[default: images.safetensors]",
            rich_help_panel=_OUTPUT,
            show_default=False,
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option("--log", help="CSV of the loss to write.", rich_help_panel=_OUTPUT, show_default=False),
    ] = None,
) -> None:
    """Synthesize calibration images from the batch-norm statistics of a network (GENIE-D)."""
    from genie_cli.config import SynthesizeConfig
    from genie_cli.synthesis.presets import preset_options

    file = opt.read(params)
    model_config = opt.model_config(
        file,
        {
            "name": model,
            "weights": weights,
            "input_size": input_size,
            "num_channels": num_channels,
            "mean": mean,
            "std": std,
        },
    )
    flags = opt.given(
        {
            "num_images": num_images, "num_steps": num_steps, "batch_size": batch_size, "preset": preset,
            "seed": seed, "device": device, "precision": precision, "out": out, "log": log,
        },
        settings,
    )  # fmt: skip
    config = opt.stage_config(SynthesizeConfig, file.section("synthesize"), flags, preset_options, "synthesize")
    _run(model_config, config)


def _run(model_config: Any, config: Any) -> None:
    from genie_cli.artifacts.atomic import atomic_write_text, check_writable
    from genie_cli.artifacts.images import save_images
    from genie_cli.artifacts.metadata import file_sha256
    from genie_cli.commands.display import note, progress, summary
    from genie_cli.models.zoo import load_teacher
    from genie_cli.runtime.device import resolve_device, resolve_dtype
    from genie_cli.synthesis.distill import batch_sizes, synthesize_images
    from genie_cli.synthesis.export import to_artifact

    check_writable(config.out)
    opt.check_log(config.log)
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
            "time": f"{time.monotonic() - started:.1f} s",
            "written": f"{config.out} ({config.out.stat().st_size / 1e6:.1f} MB, sha256 {sha256[:12]})",
        },
    )
