"""`genie_cli.synthesize`: calibration images of a network in memory."""

from __future__ import annotations

from typing import Any

from torch import nn

from genie_cli.artifacts.images import ImageSet
from genie_cli.config import SynthesizeConfig, stage_config
from genie_cli.library.network import GivenNetwork
from genie_cli.library.options import model_keys, split_options
from genie_cli.library.running import running
from genie_cli.models.network_input import RecordedInput
from genie_cli.models.teacher import Teacher
from genie_cli.runtime.progress import Reporter
from genie_cli.stages.synthesize import synthesized
from genie_cli.synthesis.presets import find_preset


def synthesize(network: str | nn.Module, *, report: Reporter | None = None, **options: Any) -> ImageSet:
    """Synthesize calibration images from the batch-norm statistics of a network (GENIE-D), as ``genie synthesize``.

    >>> images = genie_cli.synthesize(network, input_size=32, num_images=256, preset="genie-fast")  # doctest: +SKIP

    Args:
        network: a module with its weights, which is left as it is, or a model SPEC.
        report: receives progress and notes as `genie_cli.runtime.progress.Event`; None: nobody does.
        **options: fields of `SynthesizeConfig` (``preset``, ``num_images``, ``num_steps``, ``batch_size``, ``seed``,
            ``device``, ``precision`` and so on), but for files; and of `ModelConfig` (``input_size``, ``num_channels``,
            ``mean``, ``std``, ``logits``, ``reparameterize``; of a SPEC ``weights`` and ``weights_key`` too).

    Returns:
        Images ``[n, C, H, W]``, float16 normalised by the network's mean and std, or uint8 pixels with
        ``image_dtype="uint8"``. ``save(path)`` writes the file that ``genie synthesize`` writes.

    Raises:
        UsageError: an unknown option or preset, or a value out of range.
        InputError: a network that cannot be captured, or without batch norms.
        DeviceError: no such device, or memory runs out.
        NumbersError: the loss of a batch is not finite.
    """
    of_model, of_stage = split_options(
        options, SynthesizeConfig, model_keys(isinstance(network, nn.Module)), ("plugins",)
    )
    config = stage_config(SynthesizeConfig, {}, of_stage, find_preset, "synthesize")
    given = GivenNetwork.of(network, of_model)

    def open_network(reparameterize: bool, recorded: RecordedInput | None) -> Teacher:
        return given.teacher(recorded, reparameterize)

    with (
        running(config, report) as run,
        synthesized(run, config, open_network, given.config.reparameterize, given.config.logits) as made,
    ):
        return made.image_set(run)
