"""`genie_cli.evaluate`: figures of a network, and of a quantized one beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from genie_cli.config import EvaluateConfig, stage_config
from genie_cli.errors import UsageError
from genie_cli.library.network import GivenNetwork
from genie_cli.library.options import model_keys, split_options
from genie_cli.library.quantized_model import QuantizedModel
from genie_cli.library.running import running
from genie_cli.library.samples import open_given
from genie_cli.models.graph.placement import move
from genie_cli.models.network_input import RecordedInput
from genie_cli.models.teacher import Teacher
from genie_cli.runtime.progress import Reporter
from genie_cli.stages.evaluate import Measured, open_measured
from genie_cli.stages.evaluate import evaluate as measure


def evaluate(
    network: str | nn.Module | QuantizedModel,
    data: Any,
    quantized: str | Path | QuantizedModel | None = None,
    *,
    report: Reporter | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measure a network, or a quantized one beside its teacher, as ``genie evaluate`` does.

    >>> genie_cli.evaluate(model, "imagefolder:val")["top1"]  # doctest: +SKIP
    >>> genie_cli.evaluate(network, (pixels, labels), "quantized")["drop"]  # doctest: +SKIP

    Args:
        network: a `QuantizedModel`, which is measured beside its own teacher; or a module with its weights, or a model
            SPEC.
        data: a form of ``genie evaluate --data``; an `ImageSet`; pixels ``[n, C, H, W]``, uint8 from 0 to 255 or floats
            from 0 to 1, before the network's mean and std are applied; a pair of these and their targets ``[n, ...]``;
            or an iterable of images or of (image, target). Without targets the fidelity of a quantized network is
            measured: its outputs against its teacher's.
        quantized: the quantized network of `network`: a `QuantizedModel`, a folder, or a file of ``genie export``.
        report: receives progress and notes as `genie_cli.runtime.progress.Event`; None: nobody does.
        **options: fields of `EvaluateConfig` (``metric``, ``decode``, ``num_images``, ``batch_size``, ``folded``,
            ``device`` and so on), but for files; and of `ModelConfig`, as in `genie_cli.synthesize`.

    Returns:
        The figures that ``genie evaluate --json`` prints: ``model``, ``metric``, ``num_images``, those of the metric,
        such as ``top1``, and with a quantized network ``teacher_top1``, ``drop`` and ``agreement``.

    Raises:
        UsageError: an unknown option, or a metric that does not go with the data or the network.
        InputError: a network or data that cannot be used.
        DeviceError: no such device, or memory runs out.
        NumbersError: outputs that are not finite.
    """
    keys: tuple[str, ...] = ()
    if not isinstance(network, QuantizedModel):
        keys = model_keys(isinstance(network, nn.Module))
    elif quantized is not None:
        raise UsageError("The network is a quantized one already: leave out `quantized`.")
    else:
        quantized = network
    of_model, of_stage = split_options(options, EvaluateConfig, keys, ("data", "quantized"))
    config = stage_config(EvaluateConfig, {}, of_stage, where="evaluate")
    if config.folded and quantized is not None:
        raise UsageError("`folded` evaluates the teacher and `quantized` a student: give one of them.")
    given = None if isinstance(network, QuantizedModel) else GivenNetwork.of(network, of_model)

    def open_network(recorded: RecordedInput | None) -> Teacher:
        if given is not None:
            return given.teacher(recorded)
        assert isinstance(network, QuantizedModel)
        return network.teacher

    with running(config, report) as run:
        try:
            return measure(
                run,
                config,
                open_network,
                lambda spec: open_given(data, config, spec),
                lambda: _measured(quantized),
            )
        finally:
            if isinstance(network, QuantizedModel):  # its graph was moved to the device
                move(network.teacher.graph, torch.device("cpu"))


def _measured(quantized: str | Path | QuantizedModel | None) -> Measured:
    if isinstance(quantized, QuantizedModel):
        return Measured("the quantized model", artifact=quantized.artifact)
    return open_measured(None if quantized is None else Path(quantized))
