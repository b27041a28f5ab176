"""The layers of a quantized network whose weights are integers, with all that an integer kernel of one reads."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import fx, nn

from genie_cli.models.graph.integer_operations import clip_bounds, gives_floats, grid_source
from genie_cli.models.graph.operations import WeightOperation, operation_of
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.student.integer_biases import spare_bits
from genie_cli.student.modules import ActivationQuantizer, IntegerWeight

_FAR = 1e9
"""Beyond all codes."""


@dataclass(frozen=True)
class QuantizedLayer:
    """A weight layer of a quantized network.

    Attributes:
        node: that computes it.
        operation: its kind, and the places of its arguments.
        name: of the layer.
        target: of the module that gives its weight.
        weight: that module.
        source: the quantizer of its input; None: it reads a tensor in float.
        bias: the node of its bias, or None.
        spare_bits: k of `student.integer_biases.spare_bits`; 0 without a quantized input.
    """

    node: fx.Node
    operation: WeightOperation
    name: str
    target: str
    weight: IntegerWeight
    source: ActivationQuantizer | None
    bias: fx.Node | None
    spare_bits: int


def quantized_layers(student: fx.GraphModule) -> Iterator[QuantizedLayer]:
    """The layers of a quantized network whose weights are integers, in data-flow order."""
    for node in student.graph.nodes:
        operation = operation_of(node)
        if operation is None:
            continue
        weight_node = node.args[operation.weight]
        weight = module_of(student, weight_node)
        if not isinstance(weight, IntegerWeight):
            continue
        source = quantizer_of(student, node.args[operation.inputs[0]]) if len(operation.inputs) == 1 else None
        has_bias = operation.bias is not None and len(node.args) > operation.bias
        bias = node.args[operation.bias] if has_bias and operation.bias is not None else None
        bias = bias if isinstance(bias, fx.Node) and bias.op == "get_attr" else None
        value = None if bias is None else get_tensor(student, str(bias.target))
        target = str(weight_node.target)
        yield QuantizedLayer(
            node,
            operation,
            layer_name(target),
            target,
            weight,
            source,
            bias,
            0 if source is None else spare_bits(weight, source, value),
        )


def layer_name(target: str) -> str:
    """The layer or site of a quantizer that `insert_quantizers` has put into a network, by the module's path."""
    escaped = target.partition(".")[2].partition(".")[0]
    return re.sub("_([_d])", lambda match: "_" if match[1] == "_" else ".", escaped)


@dataclass(frozen=True)
class KernelOutput:
    """The quantizer that the result of a kernel goes to.

    Attributes:
        node: of its quantizer.
        quantizer: it.
        bounds: the smallest and the largest code that the quantizer and the clips before it leave.
    """

    node: fx.Node
    quantizer: ActivationQuantizer
    bounds: tuple[int, int]


def kernel_output(student: fx.GraphModule, node: fx.Node) -> KernelOutput | None:
    """The quantizer that alone reads what a node computes, perhaps behind clips; None where others read it.

    A kernel clips codes: rounding keeps the order, so that a clip before a quantizer is one of its codes.
    """
    clips: list[tuple[float | None, float | None]] = []
    while len(node.users) == 1:
        (node,) = node.users
        quantizer = module_of(student, node)
        if isinstance(quantizer, ActivationQuantizer):
            return KernelOutput(node, quantizer, _code_bounds(quantizer, clips))
        clip = clip_bounds(node)
        if clip is None:
            break
        clips.append(clip)
    return None


def _code_bounds(quantizer: ActivationQuantizer, clips: Sequence[tuple[float | None, float | None]]) -> tuple[int, int]:
    """The smallest and the largest code behind clips of the values, the first clip first."""
    low, high = -math.inf, math.inf
    for lower, upper in clips:  # as torch, which takes the upper bound where the lower one is above it
        lower, upper = -math.inf if lower is None else lower, math.inf if upper is None else upper
        low, high = min(max(low, lower), upper), min(max(high, lower), upper)
    ends = (max(-_FAR, min(_FAR, end / float(quantizer.step_size))) for end in (low, high))
    smallest, largest = quantizer.format.quant_min, quantizer.format.quant_max
    first, last = (max(smallest, min(largest, round(end))) for end in ends)
    return first, last


def has_integer_kernel(student: fx.GraphModule, node: fx.Node) -> bool:
    """True for a layer that an integer kernel can compute: one with a quantizer behind it, or a linear layer."""
    return gives_floats(node) or kernel_output(student, node) is not None


def quantizer_of(student: fx.GraphModule, node: object) -> ActivationQuantizer | None:
    """The quantizer on whose grid the values of a node are."""
    found = module_of(student, grid_source(node)) if isinstance(node, fx.Node) else None
    return found if isinstance(found, ActivationQuantizer) else None


def module_of(student: fx.GraphModule, node: object) -> nn.Module | None:
    """The module that a node calls; None where it calls none."""
    is_module = isinstance(node, fx.Node) and node.op == "call_module"
    return student.get_submodule(str(node.target)) if is_module else None  # type: ignore[attr-defined]
