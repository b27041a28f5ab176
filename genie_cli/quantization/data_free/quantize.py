"""DFQ: quantize from the network alone, by equalization, batch-norm ranges and bias correction.

M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019
(arXiv 1906.04721). Three things differ here. Weights have a grid per output channel, as everywhere in
this package (the paper: one per tensor). ReLU6 is kept, with its bound rescaled. High biases are not
absorbed (section 4.1.3), as that changes the network at the borders of padded convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from genie_cli.data.pixel_prior import PixelPrior
from genie_cli.errors import InputError
from genie_cli.models.graph.layers import input_axis, weight_layers
from genie_cli.models.graph.tensors import get_tensor, set_tensor
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.data_free.batch_norm_ranges import (
    ActivationStatistics,
    activation_statistics,
    batch_norm_outputs,
    batch_norm_tensors,
)
from genie_cli.quantization.plan import QuantizationPlan
from genie_cli.quantization.result import STAGE, QuantizedNetwork
from genie_cli.runtime.progress import Advanced, Reporter, StageFinished, StageStarted
from genie_cli.student.bit_plan import BitPlan
from genie_cli.student.formats import activation_format
from genie_cli.student.grid import minmax_step_size, weight_grid
from genie_cli.student.integer_biases import integer_layers
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight


@torch.no_grad()
def quantize_without_images(teacher: Teacher, plan: QuantizationPlan, report: Reporter) -> QuantizedNetwork:
    """Quantize `teacher` by its weights and batch norms alone, on the CPU.

    Args:
        teacher: the pre-trained network.
        plan: what to do with it. Ranges of activations are those of the batch norms, whatever
            `activation_range` says. Its folded graph gets the corrected biases; where ReLU6 was rescaled, it has
            the clips of `equalization.add_channel_clips`.
        report: receives progress.

    Returns:
        A network without units and memory, as nothing ran.

    Raises:
        InputError: the statistics of a quantized activation are not known, with the layer that reads it.
    """
    graph = plan.folded.graph
    outputs = {
        name: channels / plan.equalized[name] if name in plan.equalized else channels
        for name, channels in batch_norm_outputs(teacher.graph).items()
    }
    tensors = batch_norm_tensors(teacher.graph, plan.folded, plan.equalized)
    statistics = activation_statistics(graph, outputs, PixelPrior.of_input(teacher.input), tensors)
    activations = _quantize_activations(graph, plan.bits, statistics)
    layers = weight_layers(graph)
    report(StageStarted(STAGE, len(layers), "layers"))
    weights: dict[str, IntegerWeight] = {}
    for done, layer in enumerate(layers, 1):
        weight = get_tensor(graph, layer.weight_key)
        format = plan.bits.weight_format(layer.name)
        grid = weight_grid(weight, format, plan.config.weight_range)
        weights[layer.name] = IntegerWeight.nearest(weight, *grid, format)
        inputs = statistics.get(layer.sources[0].name)
        is_plain = layer.kind in ("linear", "conv1d", "conv2d", "conv3d")  # each output sees the whole kernel
        if inputs is not None and is_plain and inputs.axis == input_axis(graph, layer) and layer.bias_key is not None:
            bias = get_tensor(graph, layer.bias_key)
            shift = expected_shift(weights[layer.name]() - weight, inputs.channels.mean, layer.groups)
            set_tensor(graph, layer.bias_key, (bias.double() - shift).to(bias.dtype))
        report(Advanced(STAGE, done, layer.name))
    if plan.protocol.every_tensor:
        integers = integer_layers(graph, plan.bits.activations, weights, activations)
        weights = integers.weights
        for key, rounded in integers.biases.items():
            set_tensor(graph, key, rounded)
    report(StageFinished(STAGE))
    return QuantizedNetwork(plan, weights, activations, (), {}, {}, {})


def expected_shift(error: Tensor, mean: Tensor, groups: int) -> Tensor:
    """E[(W_q - W) x], which bias correction takes off the bias (section 4.2, appendix B for convolutions).

    Args:
        error: ``W_q - W [O, I / groups, ...]``.
        mean: expected input ``[I]``; the same all over a channel, padding apart.
        groups: groups of the convolution, equal to I where it is depthwise.

    Returns:
        ``[O]`` float64.
    """
    num_rows, num_columns = error.shape[:2]
    summed = error.double().reshape(groups, num_rows // groups, num_columns, -1).sum(3)
    return torch.einsum("goi,gi->go", summed, mean.double().view(groups, num_columns)).flatten()


def _quantize_activations(
    graph: fx.GraphModule, bits: BitPlan, statistics: Mapping[str, ActivationStatistics]
) -> dict[str, ActivationQuantizer]:
    """A step size that spans each site's range; codes with a sign where the range goes below 0."""
    quantizers = {}
    for site in bits.activations:
        if site.node not in statistics:
            raise InputError(
                f"The range of '{site.name}' is not known without images: preset dfq needs a network with batch norms "
                "before its layers; use --preset minmax with images instead."
            )
        low, high = statistics[site.node].channels.range
        format = activation_format(site.bits, signed=low < 0)
        step_size = minmax_step_size(torch.tensor([low, high]), format)
        quantizers[site.name] = ActivationQuantizer(step_size, format)
    return quantizers
