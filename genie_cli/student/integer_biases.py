"""Biases on the grid in which an integer kernel adds them: int32 at the product of the scales of input and weight.

``bias' = scale * code`` with ``scale = step_size * weight_scale / 2^k`` per output channel. A few bits make the product
of the scales coarse. The bits of int8 that the weight's codes leave free make it finer: codes times ``2^k`` at a weight
scale ``/ 2^k`` are the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from genie_cli.models.graph.integer_operations import grid_source
from genie_cli.models.graph.layers import WeightLayer, weight_layers
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.student.bit_plan import ActivationSite
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight

PAIR_LIMIT = 32767
"""Largest sum of two products that processors without VNNI add without saturation (int16)."""
LARGEST_BIAS = 1 << 30
"""Largest magnitude of a bias's code: the products have room beside it in int32."""
_INT8_MAX = torch.iinfo(torch.int8).max


def centred_codes(weight: IntegerWeight) -> Tensor:
    """``code - zero_point``, int32 ``[O, ...]``."""
    return weight.codes.int() - weight.zero_point.view(-1, *[1] * (weight.codes.dim() - 1))


def largest_code(source: ActivationQuantizer) -> int:
    """The largest code of an activation in a kernel that takes unsigned ones, signed ones shifted by a zero point."""
    return source.format.quant_max - source.format.quant_min


def spare_bits(weight: IntegerWeight, source: ActivationQuantizer, bias: Tensor | None = None) -> int:
    """The largest k for which a layer's integers stay in their types if its weight's codes are stored times ``2^k``.

    Codes fit into int8, sums of two products into int16, and the bias ``[O]`` into int32.
    """
    largest = max(1, int(centred_codes(weight).abs().max()))
    limit = min(_INT8_MAX, PAIR_LIMIT // (2 * largest_code(source)))
    k = max(0, (limit // largest).bit_length() - 1)
    if bias is not None:
        while k > 0 and bias_codes(bias, bias_scale(weight, source, k)) is None:
            k -= 1
    return k


def bias_scale(weight: IntegerWeight, source: ActivationQuantizer, k: int) -> Tensor:
    """The scale ``[O]`` of a layer's bias, where its weight's codes are stored times ``2^k``."""
    return weight.scale.flatten() / (1 << k) * source.step_size


def bias_codes(bias: Tensor, scale: Tensor) -> Tensor | None:
    """The nearest codes ``[O]`` of a bias ``[O]``, float64; None where its shape is another, or int32 is too small."""
    if bias.shape != scale.shape:
        return None
    codes = (bias.double() / scale.double()).round()
    return codes if float(codes.abs().max()) <= LARGEST_BIAS else None


@dataclass(frozen=True)
class IntegerLayers:
    """Layers whose biases an integer kernel adds as they are.

    Attributes:
        weights: layer name -> its weight.
        biases: key of the tensor -> ``[O]``, rounded.
    """

    weights: dict[str, IntegerWeight]
    biases: dict[str, Tensor]


def integer_layers(
    folded: fx.GraphModule,
    sites: Sequence[ActivationSite],
    weights: Mapping[str, IntegerWeight],
    activations: Mapping[str, ActivationQuantizer],
) -> IntegerLayers:
    """Layers with rounded biases.

    A bias may be too large for int32, where the weights of its channel are all but zero. Then they get a grid that is
    coarse enough. (Each layer of a captured graph has tensors of its own.)

    Args:
        folded: the folded graph.
        sites: the activation sites of the whole network.
        weights: the layers to look at, by name.
        activations: site name -> quantizer, of all that these layers read.
    """
    site_of = {site.node: site.name for site in sites}
    fitted, rounded = dict(weights), {}
    for layer in weight_layers(folded):
        if layer.name not in weights or layer.bias_key is None:
            continue
        source = _source(layer, site_of, activations)
        bias = get_tensor(folded, layer.bias_key)
        if source is None or bias.shape != weights[layer.name].scale.flatten().shape:
            continue
        weight = fitted[layer.name] = _fitted(weights[layer.name], source, bias)
        scale = bias_scale(weight, source, spare_bits(weight, source, bias))
        codes = bias_codes(bias, scale)
        assert codes is not None, "the grid is coarse enough"
        rounded[layer.bias_key] = codes.to(scale.dtype) * scale
    return IntegerLayers(fitted, rounded)


def _fitted(weight: IntegerWeight, source: ActivationQuantizer, bias: Tensor) -> IntegerWeight:
    """The weight with scales that are large enough for the bias ``[O]``."""
    least = (bias.abs().double() / (source.step_size.double() * (LARGEST_BIAS // 2))).float().view(-1, 1)
    if bool((weight.scale >= least).all()) or bias_codes(bias, bias_scale(weight, source, 0)) is not None:
        return weight
    scale = torch.maximum(weight.scale, least)
    return IntegerWeight.nearest(weight(), scale, weight.zero_point.float(), weight.format)


def _source(
    layer: WeightLayer, site_of: Mapping[str, str], activations: Mapping[str, ActivationQuantizer]
) -> ActivationQuantizer | None:
    """The quantizer of the one tensor that a layer reads, which may have been moved since; None where there is none."""
    if len(layer.sources) != 1:
        return None
    site = site_of.get(grid_source(layer.sources[0]).name)
    return None if site is None else activations.get(site)
