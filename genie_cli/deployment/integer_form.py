"""The integer form of a quantized network: integers between quantize and dequantize operations.

The operations are those of torch's ``quantized_decomposed`` library, which exporters and other tools know. Weights keep
their values to the bit, in one of two storages:

- ``int8``: codes shifted so that they are signed; where all ``code - zero_point`` of a layer fit, zero points are 0.
- ``packed``: codes of up to 4 bits as they are, for a format that packs them.

Slopes of leaky rectifiers are signed codes of 8 bits with one scale, in either storage.

Where biases are integers too, they are those of `student.integer_biases`. A layer that is computed in float anyway, as
no quantizer reads its output, has an exact bias: its sign at the scale of its magnitude. (A runtime may round a bias
that is in float.) One that int32 does not hold at this scale is added behind its layer.

A tensor that is merely moved, such as by a pooling of maxima or a slice, stays on its grid. Quantizers with this grid
stand behind the moves too, where they change nothing and tell the runtime that it may move integers.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Literal

import torch
import torch.ao.quantization.fx._decomposed  # registers the operations
from torch import Tensor, fx, nn

from genie_cli.models.graph.integer_operations import clip_bounds, grid_source, keeps_grid
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.student.integer_biases import (
    PAIR_LIMIT,
    bias_codes,
    bias_scale,
    centred_codes,
    largest_code,
)
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight
from genie_cli.student.quantized_layers import (
    QuantizedLayer,
    has_integer_kernel,
    kernel_output,
    quantized_layers,
    quantizer_of,
)

Storage = Literal["int8", "packed"]

BYTE, PACKED_BITS = 8, 4
_INT8, _INT32 = torch.iinfo(torch.int8), torch.iinfo(torch.int32)

_quantized = torch.ops.quantized_decomposed
aten = torch.ops.aten


class StoredIntegers(nn.Module):
    """Stored integers that are dequantized whenever they are read: ``scale * (code - zero_point)`` per channel.

    Attributes:
        quant_min: the smallest integer that a code may be.
        quant_max: the largest one.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> None:
        """Keep codes ``[O, ...]`` (8 bits or int32) with float32 scales ``[O]`` and int32 zero points ``[O]``."""
        super().__init__()
        self.quant_min, self.quant_max = quant_min, quant_max
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def forward(self) -> Tensor:
        """The values, float32 ``[O, ...]``."""
        dequantized: Tensor = _quantized.dequantize_per_channel(
            self.codes, self.scale, self.zero_point, 0, self.quant_min, self.quant_max, self.codes.dtype
        )
        return dequantized


class StoredSlopes(nn.Module):
    """Stored slopes that are dequantized whenever they are read: ``scale * code``, one scale for all."""

    codes: Tensor

    def __init__(self, slopes: IntegerWeight) -> None:
        """Take the codes, any shape, and the scale of `slopes`."""
        super().__init__()
        self._scale, self._zero_point = float(slopes.scale), int(slopes.zero_point)
        self.register_buffer("codes", slopes.codes.contiguous())

    def forward(self) -> Tensor:
        """The values, float32, in the shape of the codes."""
        limits = torch.iinfo(self.codes.dtype)
        values: Tensor = _quantized.dequantize_per_tensor(
            self.codes, self._scale, self._zero_point, limits.min, limits.max, self.codes.dtype
        )
        return values


class QuantizeDequantize(nn.Module):
    """An activation quantizer as two operations with unsigned integers between them, which may be clipped.

    Signed codes are shifted by a zero point. Integer kernels want all activations of one type: with mixed ones ONNX
    Runtime computes some layers in float.
    """

    def __init__(self, quantizer: ActivationQuantizer, bounds: tuple[int, int] | None) -> None:
        """Take the grid of `quantizer`, and the smallest and the largest of its codes that are left; None: all are."""
        super().__init__()
        format = quantizer.format
        low, high = bounds or (format.quant_min, format.quant_max)
        self._scale = float(quantizer.step_size)
        self._zero_point = -format.quant_min
        self._range = low - format.quant_min, high - format.quant_min
        self._dtype = torch.uint8 if format.bits <= BYTE else torch.uint16

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize `x`, any shape."""
        grid = self._scale, self._zero_point, *self._range, self._dtype
        values: Tensor = _quantized.dequantize_per_tensor(_quantized.quantize_per_tensor(x, *grid), *grid)
        return values


def may_saturate(layer: QuantizedLayer) -> bool:
    """True if two products of a layer's integers may exceed int16, which processors without VNNI add them in."""
    if layer.source is None:
        return False
    largest = int(centred_codes(layer.weight).abs().max()) << layer.spare_bits
    return 2 * largest_code(layer.source) * min(largest, _INT8.max) > PAIR_LIMIT


def integer_form(student: fx.GraphModule, storage: Storage, integer_biases: bool) -> fx.GraphModule:
    """A copy of a quantized network that computes with integers and quantize and dequantize operations.

    Args:
        student: the network, computed in floats; it is left alone.
        storage: of the weights.
        integer_biases: biases behind quantized inputs become int32; else they stay in float, as they are.
    """
    network = copy.deepcopy(student)
    layers = list(quantized_layers(network))
    spare: dict[str, int] = {}
    for layer in layers:
        if not integer_biases or layer.bias is None or layer.source is None:
            continue
        value = get_tensor(network, str(layer.bias.target))
        stored = _integer_bias(value, layer.weight, layer.source, layer.spare_bits)
        if _is_packed(layer.weight, storage) or not has_integer_kernel(network, layer.node):
            stored = _exact_bias(value)
        elif stored is not None:
            spare[layer.target] = layer.spare_bits
        else:
            _move_bias_behind(network, layer)
            continue
        target = layer.target.replace("weight_quantizers.", "bias_integers.", 1)
        network.add_submodule(target, stored)
        with network.graph.inserting_before(layer.node):
            layer.node.replace_input_with(layer.bias, network.graph.call_module(target))
    bounds = _clip_codes(network)
    _repeat_quantizers(network, bounds)
    for name, module in list(network.named_modules()):
        if isinstance(module, IntegerWeight):
            if module.format.axis is None:
                network.set_submodule(name, StoredSlopes(module))
            else:
                network.set_submodule(name, _integer_weight(module, storage, spare.get(name, 0)))
        elif isinstance(module, ActivationQuantizer):
            network.set_submodule(name, QuantizeDequantize(module, bounds.get(name)))
    network.graph.eliminate_dead_code()
    network.recompile()
    return network.eval()


def _clip_codes(network: fx.GraphModule) -> dict[str, tuple[int, int]]:
    """Take out the clips before quantizers: quantizer's target -> the codes that the clips leave.

    A kernel of a runtime takes in a clip of its codes. Behind a clip of values that bounds more than the quantizer
    does, it would be computed in float.
    """
    found = {}
    for node in list(network.graph.nodes):
        output = None if clip_bounds(node) is not None else kernel_output(network, node)
        if output is not None and output.node.args[0] is not node:
            output.node.args = (node,)
            found[str(output.node.target)] = output.bounds
    network.graph.eliminate_dead_code()
    return found


def _repeat_quantizers(network: fx.GraphModule, clipped: Collection[str]) -> None:
    """Put the quantizer of a tensor behind each node that moves its values.

    The whole grid stands there, without the clips of the `clipped` targets: zeros of a padding may lie outside of them.
    """
    for node in list(network.graph.nodes):
        if not keeps_grid(node) or not isinstance(node.meta.get("val"), Tensor):
            continue
        source = grid_source(node)
        quantizer = quantizer_of(network, source)
        if quantizer is None:
            continue
        target = str(source.target)
        if target in clipped:
            target += "_moved"  # no name of a site: `layer_name` writes another underline so
            network.add_submodule(target, copy.deepcopy(quantizer))
        with network.graph.inserting_after(node):
            again = network.graph.call_module(target)
        node.replace_all_uses_with(again)
        again.args = (node,)


def _is_packed(weight: IntegerWeight, storage: Storage) -> bool:
    return storage == "packed" and weight.format.bits <= PACKED_BITS


def _move_bias_behind(network: fx.GraphModule, layer: QuantizedLayer) -> None:
    """Add a bias ``[O]`` in float to what a layer without it returns."""
    operation, value = layer.operation, layer.node.meta.get("val")
    assert operation.bias is not None and layer.bias is not None
    if operation.channels is None or not isinstance(value, Tensor):
        return
    spread = [-1] + [1] * (value.dim() - 1 - operation.channels % value.dim())
    layer.node.update_arg(operation.bias, None)
    with network.graph.inserting_after(layer.node):
        added = network.graph.call_function(aten.add.Tensor)
    layer.node.replace_all_uses_with(added)
    with network.graph.inserting_before(added):
        added.args = layer.node, network.graph.call_function(aten.view.default, (layer.bias, spread))


def _integer_weight(weight: IntegerWeight, storage: Storage, k: int) -> StoredIntegers:
    codes, scale, zero_point = weight.codes.int(), weight.scale.flatten(), weight.zero_point.flatten()
    if _is_packed(weight, storage):
        dtype = torch.int8 if weight.format.signed else torch.uint8
        limits = torch.iinfo(dtype)
        return StoredIntegers(codes.to(dtype), scale, zero_point, limits.min, limits.max)
    centred = centred_codes(weight)
    if int(centred.min()) >= _INT8.min and int(centred.max()) <= _INT8.max:
        codes, zero_point = centred << k, torch.zeros_like(zero_point)
    else:
        shift = max(int(codes.max()), int(zero_point.max())) - _INT8.max
        codes, zero_point = codes - shift, zero_point - shift
    return StoredIntegers(codes.to(torch.int8), scale / (1 << k), zero_point, _INT8.min, _INT8.max)


def _integer_bias(bias: Tensor, weight: IntegerWeight, source: ActivationQuantizer, k: int) -> StoredIntegers | None:
    """The bias ``[O]`` at the product of the scales; None where it is of another shape, or too large for int32."""
    scale = bias_scale(weight, source, k)
    codes = bias_codes(bias, scale)
    return None if codes is None else _stored_bias(codes, scale)


def _exact_bias(bias: Tensor) -> StoredIntegers:
    """The bias ``[O]`` to the bit: its sign, at a scale that is its magnitude."""
    return _stored_bias(bias.sign(), torch.where(bias == 0, torch.ones_like(bias), bias.abs()))


def _stored_bias(codes: Tensor, scale: Tensor) -> StoredIntegers:
    zero_point = torch.zeros(len(codes), dtype=torch.int32)
    return StoredIntegers(codes.to(torch.int32), scale, zero_point, _INT32.min, _INT32.max)
