"""The share of a network that can be quantized, and the tensors that stay in float with the reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from genie_cli.models.graph.affine_map import affine_maps
from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.layers import WeightLayer, weight_layers
from genie_cli.models.graph.slopes import slopes
from genie_cli.models.graph.tensors import get_tensor

ENOUGH = 0.9
"""Share of parameters or multiplications below which a user is warned."""
aten = torch.ops.aten
_PRODUCTS = (aten.matmul.default, aten.mm.default, aten.bmm.default, aten.einsum.default)
_RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)


@dataclass(frozen=True)
class Coverage:
    """The part of a network that a quantization reaches.

    Attributes:
        parameters: share of the parameters in quantized weights and slopes; biases of layers, and the shifts of batch
            norms that stay, are left out of the count.
        multiplications: share of the multiplications that are products with a quantized weight; elementwise ones are
            left out of the count.
        in_float: tensor that stays in float -> the reason.
        batch_norms: batch norms that stay, each as an affine map per channel in float -> the reason.
    """

    parameters: float
    multiplications: float
    in_float: dict[str, str]
    batch_norms: dict[str, str]

    @property
    def is_low(self) -> bool:
        """True if a user should be warned."""
        return min(self.parameters, self.multiplications) < ENOUGH

    def described(self) -> str:
        """The shares in words, and what is left out."""
        text = f"{self.parameters:.1%} of the parameters, {self.multiplications:.1%} of the multiplications"
        left_out = [f"{name} ({reason})" for name, reason in self.in_float.items()]
        if self.batch_norms:
            left_out.append(f"{len(self.batch_norms)} batch norm(s)")
        more = f" and {len(left_out) - 4} more" if len(left_out) > 4 else ""
        return f"{text}; in float: {', '.join(left_out[:4])}{more}" if left_out else text


def coverage(folded: fx.GraphModule, unfolded: dict[str, str]) -> Coverage:
    """The coverage of a folded graph whose weight layers and slopes are all quantized.

    Args:
        folded: the graph.
        unfolded: its batch norms -> why they stay.
    """
    layers = weight_layers(folded)
    of_layer = {layer.node: layer for layer in layers}
    quantized = {*(layer.weight_key for layer in layers), *(slope.key for slope in slopes(folded))}
    aside = {layer.bias_key for layer in layers}
    aside |= {key for affine in affine_maps(folded) for key in affine.keys}
    in_float: dict[str, str] = {}
    num_quantized = sum(get_tensor(folded, key).numel() for key in quantized)
    num_float = sum(affine.num_channels for affine in affine_maps(folded))  # scales: a shift is a bias
    for node in folded.graph.nodes:
        key = str(node.target)
        if node.op != "get_attr" or key in quantized or key in aside or key in in_float:
            continue
        value = get_tensor(folded, key)
        if value.is_floating_point() and value.numel() > 1 and node.users:
            # a slope that stays is read by another operation too
            reader = min(node.users, key=lambda user: user.target is aten.prelu.default)
            in_float[key] = f"read by {_operation(reader)}"
            num_float += value.numel()
    batch = next(node for node in folded.graph.nodes if node.op == "placeholder").meta["val"].shape[0]
    products = {True: 0.0, False: 0.0}
    for node in data_nodes(folded):
        layer = of_layer.get(node)
        products[layer is not None] += _products(folded, node, layer, batch)
    total = sum(products.values())
    return Coverage(
        parameters=num_quantized / max(1, num_quantized + num_float),
        multiplications=products[True] / total if total else 1.0,
        in_float=in_float,
        batch_norms=dict(unfolded),
    )


def layer_multiplications(folded: fx.GraphModule) -> dict[str, float]:
    """Weight layer -> its multiplications per image, for the input that the network was captured with."""
    batch = next(node for node in folded.graph.nodes if node.op == "placeholder").meta["val"].shape[0]
    return {layer.name: _products(folded, layer.node, layer, batch) for layer in weight_layers(folded)}


def _products(folded: fx.GraphModule, node: fx.Node, layer: WeightLayer | None, batch: Any) -> float:
    """Multiplications of a node per image, where they are sums of products."""
    value = node.meta.get("val")
    if layer is not None:
        weight = get_tensor(folded, layer.weight_key)
        if layer.kind.startswith("conv_transpose"):
            return _numel(layer.sources[0].meta["val"], batch) * weight.numel() / (layer.groups * weight.shape[1])
        return _numel(value, batch) * weight.numel() / len(weight)
    if node.target in _PRODUCTS:
        operands = node.args[1] if node.target is aten.einsum.default else node.args[:2]
        sizes = [_numel(source.meta.get("val"), batch) for source in cast(Sequence[fx.Node], operands)]
        own = _numel(value, batch)
        # of A [m, k] and B [k, n] with the result [m, n]: m k n = sqrt(mk * kn * mn)
        return math.sqrt(own * math.prod(sizes)) if len(sizes) == 2 and own else 0.0
    if node.target is aten.scaled_dot_product_attention.default:
        queries, keys = (source.meta["val"] for source in node.all_input_nodes[:2])
        return 2 * _numel(queries, batch) * float(keys.shape[-2])
    if node.target in _RECURRENT:
        tensors = [get_tensor(folded, str(a.target)) for a in node.all_input_nodes if a.op == "get_attr"]
        sequence = node.all_input_nodes[0].meta["val"]
        steps = _numel(sequence, batch) / float(sequence.shape[-1])
        return steps * sum(tensor.numel() for tensor in tensors if tensor.dim() == 2)
    return 0.0


def _numel(value: Any, batch: Any) -> float:
    """Elements per image; a dimension that is the batch, or a multiple of it, counts by that multiple."""
    if isinstance(value, list | tuple):
        value = value[0]
    if not isinstance(value, Tensor):
        return 0.0
    return math.prod(_hint(side) for side in value.shape) / (_hint(batch) if _depends(value, batch) else 1.0)


def _depends(value: Tensor, batch: Any) -> bool:
    return any(not isinstance(side, int) for side in value.shape) or isinstance(batch, int)


def _hint(side: Any) -> float:
    """The size in the example that the network was traced with."""
    return float(side) if isinstance(side, int) else float(side.node.hint)


def _operation(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target)).split(".")[0]
