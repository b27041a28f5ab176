"""A unit whose weights are found by least squares, layer by layer, from what the quantized layers before it leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn

from genie_cli.errors import NumbersError
from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.layers import WeightLayer, weight_layers
from genie_cli.models.graph.subgraph import extract
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.quantization.activations.store import ActivationStore
from genie_cli.quantization.closed_form.least_squares import compensated_codes, corrected_weight
from genie_cli.quantization.closed_form.moments import Moments
from genie_cli.quantization.closed_form.patches import is_matrix_product, spread_patches
from genie_cli.quantization.learned.bias import LearnedBias, read_biases_from
from genie_cli.quantization.nearest_rounding import nearest_weight
from genie_cli.quantization.reconstruction.learned_unit import LearnedUnit
from genie_cli.quantization.stage import Stage
from genie_cli.quantization.units.unit_graph import UnitGraph, layer_by_layer
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Note
from genie_cli.student.grid import weight_grid
from genie_cli.student.modules import ActivationQuantizer, FloatWeight, IntegerWeight
from genie_cli.student.quantized_layers import module_of

_MOST_POSITIONS = 1 << 15
"""Positions of all images that a layer's moments are made of; each image gives one at least."""
_MOST_INPUTS = 8192
"""Of an output channel: some square matrices of so many rows are kept at once, 0.5 GB each."""
_TOO_LARGE = "layer '{}' is rounded to nearest: its channels read {} inputs each, and more than {} are not solved for."


@torch.no_grad()
def solve_unit(
    stage: Stage,
    unit: UnitGraph,
    initial: Mapping[str, ActivationQuantizer],
    before: Mapping[str, ActivationQuantizer],
    full: Sequence[ActivationStore],
    quantized: Sequence[ActivationStore],
) -> LearnedUnit:
    """The unit's integers and biases; layers that are no matrix product are rounded to their nearest integers.

    Args:
        stage: what all units share.
        unit: its graph.
        initial: site name -> quantizer of the unit's own sites.
        before: the same of earlier units, of sites that it reads too.
        full: the teacher's inputs of the unit, each ``[n, ...]``.
        quantized: the same from the quantized units before.

    Raises:
        NumbersError: a value that is not finite.
    """
    config, context, graph = stage.plan.config, stage.context, stage.plan.folded.graph
    found = LearnedUnit({}, {**before, **initial}, 0)
    for part in layer_by_layer(graph, unit):
        layer = next(own for own in weight_layers(part.teacher) if own.name == part.name)
        weight = get_tensor(part.teacher, layer.weight_key)
        format = part.bits.weight_format(layer.name)
        is_too_large = weight[0].numel() > _MOST_INPUTS
        if is_too_large:
            context.report(Note(_TOO_LARGE.format(layer.name, weight[0].numel(), _MOST_INPUTS)))
        if is_too_large or not is_matrix_product(layer):
            found = found.joined(LearnedUnit({layer.name: nearest_weight(part, layer, config)}, {}, 0))
            continue
        moments = _moments(part, layer, found, full, quantized, context).summed(context.workers)
        shape = (layer.groups, len(weight) // layer.groups, -1)
        exact = weight.double().reshape(shape)
        second, cross = moments.products(centred=layer.bias_key is not None)
        if not (second.isfinite().all() and cross.isfinite().all()):
            raise NumbersError(
                f"Layer '{layer.name}': its inputs hold NaN or infinity on these images. Check the network's "
                "weights, and that the images are normalised for it."
            )
        corrected = corrected_weight(exact, second, cross, moments.count)
        scale, zero_point = weight_grid(corrected.float().view_as(weight), format, config.weight_range)
        grid = (scale.view(*shape[:2], 1), zero_point.view(*shape[:2], 1))
        codes = compensated_codes(corrected, second, moments.count, *grid, format).float()
        own = IntegerWeight(codes.view_as(weight), scale, zero_point, format)
        biases = {}
        if layer.bias_key is not None:
            mean, quantized_mean = moments.means()
            error = exact @ mean.unsqueeze(2) - own().double().view(shape) @ quantized_mean.unsqueeze(2)
            bias = get_tensor(part.teacher, layer.bias_key)
            biases[layer.bias_key] = (bias + error.flatten()).to(bias.dtype)
        found = found.joined(LearnedUnit({layer.name: own}, {}, 0, biases))
    return found


def _moments(
    part: UnitGraph,
    layer: WeightLayer,
    found: LearnedUnit,
    full: Sequence[ActivationStore],
    quantized: Sequence[ActivationStore],
    context: RunContext,
) -> Moments:
    """Of what the last layer of a part of a unit reads, in float and behind the layers that are found."""
    weight = get_tensor(part.teacher, layer.weight_key)
    teacher = _up_to(part.teacher, layer.node, layer)
    own = FloatWeight(weight)
    weights: dict[str, nn.Module] = {**found.weights, layer.name: own}
    student = part.student(weights, found.activations)
    read_biases_from(student, {key: LearnedBias(bias) for key, bias in found.biases.items()})
    given = next(node for node in student.graph.nodes if module_of(student, node) is own)
    student = _up_to(student, next(iter(given.users)), layer).to(context.device)
    num_images, moments = len(full[0]), Moments()
    per_image = max(1, _MOST_POSITIONS // (num_images * context.workers.size))
    for first in range(0, num_images, part.rows):
        last = min(first + part.rows, num_images)
        seen = []
        for graph, stores in ((teacher, full), (student, quantized)):
            value = context.splitter(graph, *(store.read(first, last).float() for store in stores))
            seen.append(spread_patches(layer, value, tuple(weight.shape), per_image, first))
        moments.add(*seen)
    return moments


def _up_to(graph: fx.GraphModule, node: fx.Node, layer: WeightLayer) -> fx.GraphModule:
    """The graph that gives what the layer reads, where `node` computes it."""
    nodes = data_nodes(graph)
    sources = [source for source in nodes if source.op == "placeholder"]
    read = node.args[layer.operation.inputs[0]]
    assert isinstance(read, fx.Node)
    return extract(graph, nodes, sources, [read])
