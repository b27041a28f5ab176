"""``genie quantize``: a low-bit network from a teacher and calibration images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from genie_cli.commands import options as opt

_RECIPE, _OUTPUT, _IMAGES = "Recipe", "Output", "Images"


def quantize(
    model: opt.ModelName = None,
    weights: opt.Weights = None,
    input_size: opt.InputSize = None,
    num_channels: opt.NumChannels = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            help="Image set to calibrate on. \\[default: images.safetensors]",
            rich_help_panel=_IMAGES,
            show_default=False,
        ),
    ] = None,
    num_images: Annotated[
        int | None,
        typer.Option(
            "--num-images",
            help="Use the first so many images. \\[default: all]",
            rich_help_panel=_IMAGES,
            show_default=False,
        ),
    ] = None,
    weight_bits: Annotated[
        int | None,
        typer.Option(
            "--weight-bits",
            help="Bits of the weights, 2 to 8. \\[default: 4]",
            rich_help_panel=_RECIPE,
            show_default=False,
        ),
    ] = None,
    activation_bits: Annotated[
        int | None,
        typer.Option(
            "--activation-bits",
            help="Bits of the activations, 2 to 8. \\[default: 4]",
            rich_help_panel=_RECIPE,
            show_default=False,
        ),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme",
            help="Subsection of `quantize.schemes` in the params file.",
            rich_help_panel=_RECIPE,
            show_default=False,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help="Who gets which bits: genie, qdrop, ait. \\[default: genie]",
            rich_help_panel=_RECIPE,
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="Named recipe: genie-m, minmax. \\[default: genie-m]",
            rich_help_panel=_RECIPE,
            show_default=False,
        ),
    ] = None,
    num_steps: Annotated[
        int | None,
        typer.Option(
            "--num-steps",
            help="Reconstruction steps a unit. \\[default: 20000]",
            rich_help_panel=_RECIPE,
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", help="Images a step. \\[default: 32]", rich_help_panel=_RECIPE, show_default=False
        ),
    ] = None,
    settings: opt.Settings = None,
    seed: opt.Seed = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    params: opt.ParamsFile = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder to write. \\[default: quantized]", rich_help_panel=_OUTPUT, show_default=False
        ),
    ] = None,
) -> None:
    """Quantize a network's weights and activations on synthesized images (GENIE-M)."""
    from genie_cli.config import QuantizeConfig
    from genie_cli.quantization.presets import preset_options

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
            "images": images, "num_images": num_images, "weight_bits": weight_bits, "activation_bits": activation_bits,
            "protocol": protocol, "preset": preset, "num_steps": num_steps, "batch_size": batch_size,
            "seed": seed, "device": device, "precision": precision, "out": out,
        },
        settings,
    )  # fmt: skip
    section = {**file.section("quantize"), **(file.scheme(scheme) if scheme is not None else {})}
    config = opt.stage_config(QuantizeConfig, section, flags, preset_options, "quantize")
    _run(model_config, config)


def _run(model_config: Any, config: Any) -> None:
    from genie_cli.artifacts.atomic import check_writable
    from genie_cli.artifacts.images import load_images
    from genie_cli.artifacts.quantized import save_quantized
    from genie_cli.commands.display import note, progress, summary
    from genie_cli.models.zoo import load_teacher
    from genie_cli.quantization.calibration_images import calibration_images
    from genie_cli.quantization.export import to_artifact
    from genie_cli.quantization.quantize import quantize_network
    from genie_cli.runtime.device import resolve_device, resolve_dtype
    from genie_cli.student.protocol import find_protocol

    check_writable(config.out, folder=True)
    find_protocol(config.protocol)
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.precision, device)
    image_set = load_images(config.images)
    teacher = load_teacher(model_config)
    inputs = calibration_images(image_set, teacher, config.num_images)
    if image_set.metadata.teacher_sha256 not in (teacher.sha256, None):
        note(f"the images were made for another teacher, '{image_set.metadata.teacher}'.", warning=True)
    if config.reconstruct and config.batch_size > len(inputs):
        note(f"the batch of {config.batch_size} becomes {len(inputs)}, the number of images.")
    started = time.monotonic()
    with progress() as report:
        network = quantize_network(teacher, inputs, config, device, dtype, report)
    artifact = to_artifact(network, teacher, image_set, config, device)
    save_quantized(config.out, artifact)
    size = sum(file.stat().st_size for file in config.out.iterdir())
    summary(
        f"Quantized w{config.weight_bits}a{config.activation_bits}",
        {
            "teacher": f"{teacher.name} ({teacher.sha256[:12]})",
            "images": f"{len(inputs)} of {config.images}",
            "recipe": f"{config.preset}, protocol {config.protocol}"
            + (f", {config.num_steps} steps a unit" if config.reconstruct else ""),
            "units": len(network.units),
            "error": f"{network.units[-1].relative_error:.4f} of the output's energy",
            "device": f"{device}, {str(dtype).removeprefix('torch.')}",
            "time": f"{time.monotonic() - started:.1f} s",
            "written": f"{config.out} ({size / 1e6:.2f} MB)",
        },
    )
