"""``genie quantize``: a low-bit network from a teacher and calibration images."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from genie_cli.commands import options as opt

if TYPE_CHECKING:
    from genie_cli.config import ModelConfig, QuantizeConfig


def quantize(
    model: opt.ModelName = None,
    weights: opt.Weights = None,
    input_size: opt.InputSize = None,
    num_channels: opt.NumChannels = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    images: opt.Images = None,
    num_images: opt.FirstImages = None,
    weight_bits: opt.WeightBits = None,
    activation_bits: opt.ActivationBits = None,
    protocol: opt.Protocol = None,
    preset: opt.QuantizePreset = None,
    num_steps: opt.UnitSteps = None,
    batch_size: opt.QuantizeBatchSize = None,
    settings: opt.QuantizeSettings = None,
    scheme: opt.Scheme = None,
    seed: opt.Seed = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    memory_limit: opt.MemoryLimit = None,
    params: opt.ParamsFile = None,
    out: opt.QuantizedOut = None,
) -> None:
    """Quantize a network's weights and activations on synthesized images (GENIE-M)."""
    from genie_cli.config import QuantizeConfig
    from genie_cli.quantization.presets import preset_options

    file = opt.read(params)
    model_config = opt.model_config(file, model, weights, input_size, num_channels, mean, std)
    flags = opt.given(
        {
            "images": images, "num_images": num_images, "weight_bits": weight_bits, "activation_bits": activation_bits,
            "protocol": protocol, "preset": preset, "num_steps": num_steps, "batch_size": batch_size,
            "seed": seed, "device": device, "precision": precision, "memory_limit": memory_limit, "out": out,
        },
        settings,
    )  # fmt: skip
    section = {**file.section("quantize"), **(file.scheme(scheme) if scheme is not None else {})}
    config = opt.stage_config(QuantizeConfig, section, flags, preset_options, "quantize")
    _run(model_config, config)


def _run(model_config: ModelConfig, config: QuantizeConfig) -> None:
    from genie_cli.artifacts.atomic import check_writable
    from genie_cli.artifacts.images import load_images
    from genie_cli.artifacts.quantized import save_quantized
    from genie_cli.commands.display import duration, file_size, note, progress, summary
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
            "time": duration(time.monotonic() - started),
            "written": f"{config.out} ({file_size(size)})",
        },
    )
