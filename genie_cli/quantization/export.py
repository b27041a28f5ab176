"""A learned network as the artifact that `genie quantize` writes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genie_cli import __version__
from genie_cli.artifacts.images import ImageSet
from genie_cli.artifacts.quantized import (
    ActivationEntry,
    ActivationStep,
    QuantizedArtifact,
    QuantizedMetadata,
    QuantizedWeight,
    WeightEntry,
)
from genie_cli.config import QuantizeConfig
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import named_tensors
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.quantize import QuantizedNetwork
from genie_cli.student.build import insert_quantizers
from genie_cli.student.probe import METRIC, probe_logits


def to_artifact(
    network: QuantizedNetwork, teacher: Teacher, images: ImageSet | None, config: QuantizeConfig, device: torch.device
) -> QuantizedArtifact:
    """Integers, step sizes and all other tensors of `network`, with where they come from; images are None for DFQ."""
    weights = {
        name: QuantizedWeight(w.codes.contiguous(), w.scale, w.zero_point, w.bits)
        for name, w in network.weights.items()
    }
    activations = {
        name: ActivationStep(float(a.step_size), a.bits, a.signed) for name, a in network.activations.items()
    }
    metadata = QuantizedMetadata(
        teacher=teacher.name,
        teacher_sha256=teacher.sha256,
        config=config.determining(),
        protocol=config.protocol,
        preset=config.preset,
        seed=config.seed,
        input=teacher.input,
        weights={n: WeightEntry(bits=w.bits, shape=tuple(w.codes.shape)) for n, w in weights.items()},
        activations={n: ActivationEntry(bits=a.bits, signed=a.signed) for n, a in activations.items()},
        images_sha256=images.sha256 if images is not None else None,
        images_teacher_sha256=images.metadata.teacher_sha256 if images is not None else None,
        tool_version=__version__,
        torch_version=str(torch.__version__),
        device_kind=device.type,
    )
    return QuantizedArtifact(
        weights, activations, _other_tensors(network), metadata, _metrics(network, teacher, config)
    )


def _other_tensors(network: QuantizedNetwork) -> dict[str, Tensor]:
    folded = network.folded.graph
    taken = {layer.weight_key for layer in weight_layers(folded)}
    return {
        key: value.float() if value.is_floating_point() else value
        for key, value in named_tensors(folded).items()
        if key not in taken
    }


def _metrics(network: QuantizedNetwork, teacher: Teacher, config: QuantizeConfig) -> dict[str, Any]:
    student = insert_quantizers(network.folded.graph, network.plan, network.weights, network.activations)
    return {
        METRIC: probe_logits(student, teacher.input),
        "preset": config.preset,
        "protocol": config.protocol,
        "weight_bits": config.weight_bits,
        "activation_bits": config.activation_bits,
        "relative_error": network.units[-1].relative_error if network.units else None,
        "units": [
            {
                "name": unit.name,
                "layers": list(unit.layers),
                "num_steps": unit.num_steps,
                "relative_error": unit.relative_error,
                "held_out_error": unit.held_out_error,
            }
            for unit in network.units
        ],
    }
