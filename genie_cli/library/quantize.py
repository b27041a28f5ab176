"""`genie_cli.quantize`: a low-bit network from a network and images in memory."""

from __future__ import annotations

from typing import Any

from torch import nn

from genie_cli.artifacts.images import ImageSet
from genie_cli.config import QuantizeConfig, stage_config
from genie_cli.errors import UsageError
from genie_cli.library.images import Images, given_samples, named
from genie_cli.library.network import GivenNetwork
from genie_cli.library.options import model_keys, split_options
from genie_cli.library.quantized_model import QuantizedModel
from genie_cli.library.running import running
from genie_cli.models.network_input import RecordedInput
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.images import drawn_image_set, open_image_set, recorded_input
from genie_cli.quantization.presets import find_preset
from genie_cli.runtime.progress import Reporter
from genie_cli.stages.quantize import quantized


def quantize(
    network: str | nn.Module, images: Images | None = None, *, report: Reporter | None = None, **options: Any
) -> QuantizedModel:
    """Quantize a network's weights and activations on calibration images (GENIE-M), as ``genie quantize`` does.

    >>> model = genie_cli.quantize(network, images, weight_bits=4, activation_bits=4, seed=0)  # doctest: +SKIP
    >>> model.module(batch)  # doctest: +SKIP

    Args:
        network: a module with its weights, which is left as it is, or a model SPEC.
        images: an `ImageSet`; the path of one, or real images in a form of ``genie quantize --images``; pixels
            ``[n, C, H, W]``, uint8 from 0 to 255 or floats from 0 to 1, which are rounded to 8 bits, before the
            network's mean and std are applied; or an iterable of such images ``[C, H, W]``, or of (image, target).
            None: a preset that needs none (``dfq``).
        report: receives progress and notes as `genie_cli.runtime.progress.Event`; None: nobody does.
        **options: fields of `QuantizeConfig` (``preset``, ``weight_bits``, ``activation_bits``, ``protocol``,
            ``num_images``, ``num_steps``, ``bits_override`` and so on), but for files; and of `ModelConfig`, as in
            `genie_cli.synthesize`. An image set made for this network says its input.

    Raises:
        UsageError: an unknown option, preset or protocol, a value out of range, or no images.
        InputError: a network that cannot be captured, or images that do not fit it.
        DeviceError: no such device, or memory runs out.
        NumbersError: a value that is not finite.
    """
    is_module = isinstance(network, nn.Module)
    of_model, of_stage = split_options(options, QuantizeConfig, model_keys(is_module), ("images", "plugins"))
    config = stage_config(QuantizeConfig, {}, of_stage, find_preset, "quantize")
    if images is None and not config.data_free:
        raise UsageError(f"Preset '{config.preset}' needs images: give an image set, a path or a tensor of pixels.")
    given = GivenNetwork.of(network, of_model)
    with (
        running(config, report) as run,
        quantized(
            run,
            config,
            lambda: given.teacher(None if config.data_free else _recorded(images)),
            lambda teacher: _image_set(images, teacher, config),
        ) as result,
    ):
        return QuantizedModel(result.teacher, result.artifact(run))


def _recorded(images: Images | None) -> RecordedInput | None:
    """The input that an image set records."""
    if isinstance(images, ImageSet):
        return RecordedInput("the image set", images.metadata.teacher_sha256, images.metadata.input)
    name = None if images is None else named(images)
    return None if name is None else recorded_input(name)


def _image_set(images: Images | None, teacher: Teacher, config: QuantizeConfig) -> ImageSet:
    assert images is not None, "quantization without images has asked for some"
    if isinstance(images, ImageSet):
        return images
    name = named(images)
    if name is not None:
        return open_image_set(name, teacher, config.num_images, config.seed)
    samples = given_samples(images, teacher.input, None)
    return drawn_image_set(samples, teacher.input, config.num_images, config.seed)
