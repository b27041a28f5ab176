"""Biases on the grid in which an integer kernel adds them: int32 at the product of the scales of input and weight.

``bias' = scale * code`` with ``scale = step_size * weight_scale / 2^k`` per output channel. A few bits make the product
of the scales coarse. The bits of int8 that the weight's codes leave free make it finer: codes times ``2^k`` at a weight
scale ``/ 2^k`` are the same weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from genie_cli.models.graph.integer_operations import grid_source
from genie_cli.models.graph.layers import WeightLayer, weight_layers
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight
from genie_cli.student.protocol import ActivationSite

PAIR_LIMIT = 32767
"""Largest sum of two products that processors without VNNI add without saturation (int16)."""
_INT8_MAX, _INT32_MAX = torch.iinfo(torch.int8).max, torch.iinfo(torch.int32).max


def centred_codes(weight: IntegerWeight) -> Tensor:
    """``code - zero_point``, int32 ``[O, ...]``."""
    return weight.codes.int() - weight.zero_point.view(-1, *[1] * (weight.codes.dim() - 1))


def largest_code(source: ActivationQuantizer) -> int:
    """The largest magnitude of an activation's codes."""
    return max(source.format.quant_max, -source.format.quant_min)


def spare_bits(weight: IntegerWeight, source: ActivationQuantizer) -> int:
    """The largest k for which codes times ``2^k`` fit into int8, and sums of two products into int16."""
    largest = max(1, int(centred_codes(weight).abs().max()))
    limit = min(_INT8_MAX, PAIR_LIMIT // (2 * largest_code(source)))
    return max(0, (limit // largest).bit_length() - 1)


def bias_scale(weight: IntegerWeight, source: ActivationQuantizer, k: int) -> Tensor:
    """The scale ``[O]`` of a layer's bias, where its weight's codes are stored times ``2^k``."""
    return weight.scale.flatten() / (1 << k) * source.step_size


def bias_codes(bias: Tensor, scale: Tensor) -> Tensor | None:
    """The nearest codes ``[O]`` of a bias ``[O]``, float64; None where its shape is another, or int32 is too small."""
    if bias.shape != scale.shape:
        return None
    codes = (bias.double() / scale.double()).round()
    return codes if float(codes.abs().max()) <= _INT32_MAX else None


def integer_biases(
    folded: fx.GraphModule,
    sites: Sequence[ActivationSite],
    weights: Mapping[str, IntegerWeight],
    activations: Mapping[str, ActivationQuantizer],
) -> dict[str, Tensor]:
    """The rounded biases of layers: key of the tensor -> ``[O]``.

    A bias that something else reads too, or that int32 does not hold, is left out and stays as it is.

    Args:
        folded: the folded graph.
        sites: the activation sites of the whole network.
        weights: the layers to look at, by name.
        activations: site name -> quantizer, of all that these layers read.
    """
    readers = Counter(str(node.target) for node in folded.graph.nodes if node.op == "get_attr" for _ in node.users)
    site_of = {site.node: site.name for site in sites}
    rounded = {}
    for layer in weight_layers(folded):
        if layer.name not in weights or layer.bias_key is None or readers[layer.bias_key] > 1:
            continue
        source = _source(layer, site_of, activations)
        if source is None:
            continue
        weight, bias = weights[layer.name], get_tensor(folded, layer.bias_key)
        scale = bias_scale(weight, source, spare_bits(weight, source))
        codes = bias_codes(bias, scale)
        if codes is not None:
            rounded[layer.bias_key] = codes.to(scale.dtype) * scale
    return rounded


def _source(
    layer: WeightLayer, site_of: Mapping[str, str], activations: Mapping[str, ActivationQuantizer]
) -> ActivationQuantizer | None:
    """The quantizer of the one tensor that a layer reads, which may have been moved since; None where there is none."""
    if len(layer.sources) != 1:
        return None
    site = site_of.get(grid_source(layer.sources[0]).name)
    return None if site is None else activations.get(site)
