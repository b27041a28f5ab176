"""A learned network as the artifact that `genie quantize` writes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor

from genie_cli.artifacts.details import Details, bounded, histograms_of, thinned
from genie_cli.artifacts.images import ImageSet
from genie_cli.artifacts.metadata import Arithmetic, provenance
from genie_cli.artifacts.quantized import (
    ActivationEntry,
    CoverageEntry,
    QuantizedActivation,
    QuantizedArtifact,
    QuantizedMetadata,
    QuantizedWeight,
)
from genie_cli.config import QuantizeConfig
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor, key_owner, named_tensors
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.result import QuantizedNetwork
from genie_cli.runtime.registered import code_hashes
from genie_cli.student.probe import METRIC, probe_outputs


def recipe_hashes(config: QuantizeConfig) -> dict[str, str | None]:
    """Hashes of the files of those parts of a recipe that the user registered."""
    return code_hashes([("quantization preset", config.preset), ("rounding", config.rounding)])


def to_artifact(
    network: QuantizedNetwork, teacher: Teacher, images: ImageSet | None, arithmetic: Arithmetic
) -> QuantizedArtifact:
    """Integers, step sizes and all other tensors of `network`, with where they come from; images are None for DFQ."""
    config = network.plan.config
    weights = {
        name: QuantizedWeight(w.codes.contiguous(), w.scale, w.zero_point, w.format.bits, w.format.grid, w.format.axis)
        for name, w in network.stored.items()
    }
    activations = {
        name: QuantizedActivation(float(a.step_size), a.format.bits, a.format.signed)
        for name, a in network.activations.items()
    }
    metadata = QuantizedMetadata(
        **provenance(config.determining(), config.seed, teacher.input, teacher.name, arithmetic),
        plugins=recipe_hashes(config),
        teacher_sha256=teacher.sha256,
        source_sha256=teacher.source_sha256,
        protocol=config.protocol,
        preset=config.preset,
        weights={n: w.entry for n, w in weights.items()},
        activations={n: ActivationEntry(bits=a.bits, signed=a.signed) for n, a in activations.items()},
        images_sha256=images.sha256 if images is not None else None,
        images_teacher_sha256=images.metadata.teacher_sha256 if images is not None else None,
        images_code_sha256=images.code_sha256 if images is not None else None,
        unfolded=tuple(network.plan.folded.unfolded),
        coverage=CoverageEntry(
            parameters=network.plan.coverage.parameters,
            multiplications=network.plan.coverage.multiplications,
            in_float=network.plan.coverage.in_float,
        ),
        checks=network.plan.checks,
        outputs=teacher.outputs.names,
        logits=teacher.logits.name if teacher.logits is not None else None,
    )
    tensors, metrics = _other_tensors(network), _metrics(network, teacher)
    return QuantizedArtifact(weights, activations, tensors, metadata, metrics, _details(network))


def _other_tensors(network: QuantizedNetwork) -> dict[str, Tensor]:
    return {
        key: value.float() if value.is_floating_point() else value
        for key, value in named_tensors(network.plan.folded.graph).items()
        if key_owner(key) not in network.stored
    }


def _details(network: QuantizedNetwork) -> Details:
    folded = network.plan.folded.graph
    floats = {layer.name: get_tensor(folded, layer.weight_key) for layer in weight_layers(folded)}
    pairs = {name: histograms_of(floats[name], weight()) for name, weight in bounded(network.weights).items()}
    losses = {
        name: thinned([(row.step, row.loss, row.held_out_loss) for row in record.log])
        for name, record in bounded(network.records).items()
        if record.log
    }
    outputs = {name: record.output for name, record in bounded(network.records).items() if record.output is not None}
    return Details(weights=pairs, activations=outputs, losses=losses)


def _metrics(network: QuantizedNetwork, teacher: Teacher) -> dict[str, Any]:
    config = network.plan.config
    return {
        METRIC: probe_outputs(network.student(), teacher.input),
        "preset": config.preset,
        "protocol": config.protocol,
        "weight_bits": config.weight_bits,
        "activation_bits": config.activation_bits,
        "output_errors": network.output_errors,
        "coverage": {
            "parameters": network.plan.coverage.parameters,
            "multiplications": network.plan.coverage.multiplications,
            "in_float": network.plan.coverage.in_float,
            "batch_norms": network.plan.coverage.batch_norms,
        },
        "checks": network.plan.checks,
        "units": [{**asdict(unit), "layers": list(unit.layers)} for unit in network.units],
        **({} if network.finetuning is None else {"finetuning": asdict(network.finetuning)}),
    }
