"""Let a quantized network compute as the integer kernels of ONNX Runtime do, to the same codes.

Simulated in floats, a layer's sums differ from a kernel's integers by the rounding of floats. A few sums in a hundred
thousand lie so near to the middle between two codes that they get the other one, and behind many layers every image
has other codes. Here kernels read codes and give codes. Floats hold their sums exactly up to 2^24; larger ones keep
24 bits.

- A layer (``QLinearConv``, ``QGemm``): the int32 sum with its bias, converted to float32, times ``input scale * weight
  scale / output scale``, is rounded to the nearest even integer. Where no quantizer stands behind a linear layer, it is
  not divided and not rounded.
- An addition (``QLinearAdd``): ``fma(a, A, fma(b, B, offset))`` of unsigned codes, where A and B are the scales over
  that of the sum.
- A mean over all positions (``QLinearGlobalAveragePool``): the sum times ``input scale / (output scale * number)``.

All other operations compute with values, as they did: their kernels look values up, or compute in float.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from genie_cli.models.graph.integer_operations import gives_floats, positions_averaged
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.student.integer_biases import bias_codes, bias_scale, centred_codes
from genie_cli.student.kernel_modules import (
    Addition,
    BiasCodes,
    Dequantize,
    Quantize,
    Requantize,
    RequantizeMean,
    WeightCodes,
)
from genie_cli.student.modules import ActivationQuantizer
from genie_cli.student.quantized_layers import (
    KernelOutput,
    QuantizedLayer,
    kernel_output,
    module_of,
    quantized_layers,
    quantizer_of,
)

aten = torch.ops.aten

_KINDS = {"linear", *(f"conv{kind}{sides}d" for kind in ("", "_transpose") for sides in (1, 2, 3))}
_BYTE = 8
_EXACT = 1 << 24
"""Below it float32 holds all integers."""


def use_integer_kernels(network: fx.GraphModule) -> None:
    """Let layers, additions and means of a quantized network compute as integer kernels do, in place.

    One stays as it is where no quantizer gives what it reads or takes what it returns, where codes have more than
    8 bits, or where int32 does not hold its bias: runtimes compute it in float.
    """
    _Rewrite(network).run()


class _Rewrite:
    """The replacement of operations by kernels."""

    def __init__(self, network: fx.GraphModule) -> None:
        self._network, self._graph = network, network.graph
        self._codes: dict[fx.Node, fx.Node] = {}
        """Node of a quantizer -> node of its codes."""
        self._num_modules = 0

    def run(self) -> None:
        """Replace all that can be replaced; what they are is read before the first change."""
        layers = [(layer, kernel_output(self._network, layer.node)) for layer in quantized_layers(self._network)]
        additions = [node for node in self._graph.nodes if node.target is aten.add.Tensor and not node.kwargs]
        means = [(node, number) for node in self._graph.nodes if (number := positions_averaged(node)) is not None]
        nodes = [*additions, *(node for node, _ in means)]
        others = {node: (self._inputs(node), kernel_output(self._network, node)) for node in nodes}
        self._divide_quantizers()
        for layer, output in layers:
            self._replace_layer(layer, output)
        for node in additions:
            inputs, output = others[node]
            if len(inputs) == 2 and output is not None and _are_bytes(*inputs, output):
                self._replace_addition(node, (inputs[0], inputs[1]), output)
        for node, number in means:
            inputs, output = others[node]
            if inputs and output is not None and _are_bytes(inputs[0], output):
                self._replace_mean(node, number, inputs[0], output)
        self._graph.eliminate_dead_code()
        self._network.delete_all_unused_submodules()
        self._network.train(self._network.training)  # the new modules too
        self._graph.lint()
        self._network.recompile()

    def _inputs(self, node: fx.Node) -> list[ActivationQuantizer]:
        """The quantizers of what a node reads, those that there are."""
        found = (quantizer_of(self._network, source) for source in node.args)
        return [quantizer for quantizer in found if quantizer is not None]

    def _divide_quantizers(self) -> None:
        """Make each quantizer a node of its codes and, in its place, one of its values."""
        for node in list(self._graph.nodes):
            quantizer = module_of(self._network, node)
            if isinstance(quantizer, ActivationQuantizer):
                self._codes[node] = self._insert(node, Quantize(quantizer), *node.args)
                self._network.set_submodule(str(node.target), Dequantize(quantizer))
                node.args = (self._codes[node],)

    def _replace_layer(self, layer: QuantizedLayer, output: KernelOutput | None) -> None:
        node, operation, value = layer.node, layer.operation, layer.node.meta.get("val")
        if layer.source is None or operation.kind not in _KINDS or not isinstance(value, Tensor):
            return
        if (output is None and not gives_floats(node)) or not _are_bytes(layer.source, output):
            return
        has_bias = operation.bias is not None and any(node.args[operation.bias : operation.bias + 1])
        if has_bias != (layer.bias is not None):  # a bias that is computed
            return
        scale = bias_scale(layer.weight, layer.source, layer.spare_bits)
        given = torch.zeros_like(scale) if layer.bias is None else self._tensor(layer.bias)
        bias = bias_codes(given, scale)
        if bias is None:
            return
        place = operation.inputs[0]
        node.update_arg(place, self._codes_of(node, node.args[place], layer.source))
        self._network.set_submodule(layer.target, WeightCodes.of(layer))
        is_exact = _largest_sum(layer, bias) < _EXACT
        if layer.bias is not None and operation.bias is not None:
            node.update_arg(operation.bias, self._insert(node, BiasCodes(bias.float())) if is_exact else None)
        assert operation.channels is not None
        spread = [-1] + [1] * (value.dim() - 1 - operation.channels % value.dim())
        multiplier = scale if output is None else scale / output.quantizer.step_size
        bounds = None if output is None else output.bounds
        added = None if is_exact else bias.to(torch.int32).view(spread)
        requantize = Requantize(multiplier.view(spread), added, bounds)
        if output is not None:
            self._give(output, requantize, node)
            return
        with self._graph.inserting_after(node):
            behind = self._graph.call_module(self._added(requantize))
        behind.meta = dict(node.meta)
        node.replace_all_uses_with(behind)
        behind.args = (node,)

    def _replace_addition(
        self, node: fx.Node, inputs: tuple[ActivationQuantizer, ActivationQuantizer], output: KernelOutput
    ) -> None:
        codes = [self._codes_of(node, source, own) for source, own in zip(node.args, inputs, strict=True)]
        self._give(output, Addition(*inputs, output.quantizer, output.bounds), *codes)

    def _replace_mean(self, node: fx.Node, number: int, source: ActivationQuantizer, output: KernelOutput) -> None:
        multiplier = source.step_size / (output.quantizer.step_size * number)
        node.update_arg(0, self._codes_of(node, node.args[0], source))
        self._give(output, RequantizeMean(number, multiplier, output.bounds), node)

    def _codes_of(self, reader: fx.Node, source: object, quantizer: ActivationQuantizer) -> fx.Node:
        """The codes of what `reader` reads; values that were moved since are quantized again, which changes none."""
        assert isinstance(source, fx.Node)
        return self._codes.get(source) or self._insert(reader, Quantize(quantizer), source)

    def _give(self, output: KernelOutput, module: nn.Module, *arguments: fx.Node) -> None:
        """Let `module` compute the codes of an output."""
        codes = self._codes[output.node]
        self._network.set_submodule(str(codes.target), module)
        codes.args = arguments

    def _insert(self, before: fx.Node, module: nn.Module, *arguments: object) -> fx.Node:
        with self._graph.inserting_before(before):
            return self._graph.call_module(self._added(module), arguments)  # type: ignore[arg-type]

    def _added(self, module: nn.Module) -> str:
        target = f"kernels.k{self._num_modules}"
        self._num_modules += 1
        self._network.add_submodule(target, module)
        return target

    def _tensor(self, node: fx.Node) -> Tensor:
        return get_tensor(self._network, str(node.target))


def _are_bytes(*tensors: ActivationQuantizer | KernelOutput | None) -> bool:
    """True if the codes of all quantizers that there are have 8 bits at most."""
    quantizers = (tensor.quantizer if isinstance(tensor, KernelOutput) else tensor for tensor in tensors)
    return all(quantizer is None or quantizer.format.bits <= _BYTE for quantizer in quantizers)


def _largest_sum(layer: QuantizedLayer, bias: Tensor) -> int:
    """A bound of the magnitudes of a layer's sums, whatever it reads."""
    assert layer.source is not None
    format = layer.source.format
    weights = centred_codes(layer.weight).abs().flatten(1).sum(1) << layer.spare_bits
    return int((weights * max(-format.quant_min, format.quant_max) + bias.abs()).max())
