"""The bytes that a quantized folder takes on the disk, before the network is learned.

Of all that is stored, the packed codes alone depend on the bits: ``ceil(codes * bits / 8)`` bytes per layer. All else
(scales, zero points, biases, step sizes, names, the metadata of both files, the metrics) is written once as a blank
network, in the very form in which it will be, and counted. Numbers that are not known yet (errors, probe values) are
taken to be as long as a number can be, so that the size is an upper bound: the folder is at most some hundred bytes
smaller. `details.json`, which no runtime needs, is left out of a folder where it would not fit beside the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from genie_cli.artifacts.images import ImageSet
from genie_cli.artifacts.metadata import Arithmetic
from genie_cli.artifacts.packing import packed_length
from genie_cli.artifacts.quantized_folder import folder_files
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.quantization.export import to_artifact
from genie_cli.quantization.plan import QuantizationPlan
from genie_cli.quantization.result import FinetuningReport, QuantizedNetwork, UnitReport
from genie_cli.student.formats import activation_format
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight

LONGEST_NUMBER = -2.2250738585072014e-308
"""A number whose JSON is as long as that of any float64: 24 characters."""


@dataclass(frozen=True)
class FolderSize:
    """The size of a network's quantized folder as a function of the bits of its weights.

    Attributes:
        fixed: bytes of all but packed codes; an upper bound.
        num_codes: layer -> elements of its weight.
    """

    fixed: int
    num_codes: dict[str, int]

    def layer_bytes(self, layer: str, bits: int) -> int:
        """Bytes of a layer's packed codes."""
        return packed_length(self.num_codes[layer], bits)

    def num_bytes(self, weights: Mapping[str, int]) -> int:
        """Bytes of the folder with these bits: layer -> bits."""
        return self.fixed + sum(self.layer_bytes(layer, bits) for layer, bits in weights.items())


def folder_size(plan: QuantizationPlan, images: ImageSet | None, arithmetic: Arithmetic) -> FolderSize:
    """The size of a network's folder as a function of the bits of its weights.

    Args:
        plan: of the largest bits that are looked at: no header is longer with fewer.
        images: the calibration images, which the metadata name.
        arithmetic: that of the work, which the metadata tell.
    """
    num_codes = {
        layer.name: get_tensor(plan.folded.graph, layer.weight_key).numel()
        for layer in weight_layers(plan.folded.graph)
    }
    artifact = to_artifact(_blank(plan), plan.teacher, images, arithmetic)
    files = folder_files(replace(artifact, metrics=_longest(artifact.metrics), details=None))
    codes = sum(packed_length(num_codes[layer], bits) for layer, bits in plan.bits.weights.items())
    return FolderSize(sum(map(len, files.values())) - codes, num_codes)


def _blank(plan: QuantizationPlan) -> QuantizedNetwork:
    """A network of the plan's formats whose codes are all zero."""
    weights = {}
    for layer in weight_layers(plan.folded.graph):
        shape = get_tensor(plan.folded.graph, layer.weight_key).shape
        scale = torch.ones(shape[0], 1)
        weights[layer.name] = IntegerWeight(
            torch.zeros(shape), scale, torch.zeros_like(scale), plan.bits.weight_format(layer.name)
        )
    activations = {  # `false` is longer than `true`
        site.name: ActivationQuantizer(1.0, activation_format(site.bits, signed=False))
        for site in plan.bits.activations
    }
    config = plan.config
    held_out = LONGEST_NUMBER if config.holdout or config.patience is not None else None
    units = tuple(
        UnitReport(
            unit.name,
            unit.layers,
            config.num_steps * len(unit.layers),
            LONGEST_NUMBER,
            held_out,
            len(unit.outputs),
        )
        for unit in plan.units
    )
    errors = dict.fromkeys(plan.teacher.outputs.names, LONGEST_NUMBER)
    finetuning = None
    if plan.finetuned is not None:  # `false` is longer than `true`
        finetuning = FinetuningReport(config.finetune_steps, LONGEST_NUMBER, LONGEST_NUMBER, kept=False)
    return QuantizedNetwork(plan, weights, activations, units, {}, errors, {}, finetuning)


def _longest(value: Any) -> Any:
    """The same metrics with numbers that are as long as they can be."""
    if isinstance(value, float):
        return LONGEST_NUMBER
    if isinstance(value, Mapping):
        return {key: _longest(item) for key, item in value.items()}
    return [_longest(item) for item in value] if isinstance(value, list | tuple) else value
