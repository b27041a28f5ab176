"""The kernels that ONNX Runtime takes for a file: which layers are computed in integers, and what is in float."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genie_cli.deployment.runtimes import OnnxRuntime
from genie_cli.runtime.extras import required

_INTEGER_LAYERS = {"QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
_FLOAT_LAYERS = {
    "Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "DeformConv", "MatMulNBits",
    "Einsum",
}  # fmt: skip
_FACTORS_APART = {"QLinearConv", "QGemm", "QLinearMatMul"}
"""Layers whose inputs are tensor, scale and zero point in turn: the second factor is the fourth one."""
_CONVERTING = {"QuantizeLinear", "DequantizeLinear", "Cast", "DynamicQuantizeLinear"}
_MOVING = {
    "Clip", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Identity", "Shape", "Gather",
    "Expand", "Constant", "Pad", "MaxPool", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip
"""They compute with the values they get, integers or floats, and change none of them."""


@dataclass(frozen=True)
class Kernels:
    """The kernels that a runtime takes.

    Attributes:
        num_layers: layers with weights.
        integer_layers: those that integer kernels compute.
        operators: operator of the optimized graph -> number of nodes.
        float_islands: names of nodes that compute in float, in data-flow order.
    """

    num_layers: int
    integer_layers: int
    operators: Mapping[str, int]
    float_islands: tuple[str, ...]

    @property
    def integer_share(self) -> float:
        """The share of the layers that integer kernels compute."""
        return self.integer_layers / self.num_layers if self.num_layers else 0.0


def kernels_of(content: bytes) -> Kernels:
    """The kernels that ONNX Runtime takes for a file.

    Raises:
        UsageError: a package is not installed.
        InputError: the runtime cannot write the optimized graph.
    """
    onnx = required("onnx")
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        OnnxRuntime(content, None, 1, optimized)
        graph = onnx.load(str(optimized)).graph
    constants = {initializer.name for initializer in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    operators: dict[str, int] = {}
    layers, integers, islands = 0, 0, []
    for node in graph.node:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
        is_integer = node.op_type in _INTEGER_LAYERS or node.op_type.startswith("QLinear")
        is_layer = node.op_type in _INTEGER_LAYERS | _FLOAT_LAYERS and any(
            _is_stored(name, constants, producers) for name in _factors(node)
        )
        layers += is_layer
        integers += is_layer and is_integer
        if not is_integer and node.op_type not in _CONVERTING | _MOVING:
            islands.append(node.name or node.op_type)
    return Kernels(layers, integers, dict(sorted(operators.items())), tuple(islands))


def _factors(node: Any) -> list[str]:
    """The tensors that a layer multiplies; without a bias, scales and zero points."""
    if node.op_type in _FACTORS_APART:
        return [node.input[0], node.input[3]]
    return list(node.input if node.op_type == "Einsum" else node.input[:2])


def _is_stored(name: str, constants: set[str], producers: Mapping[str, Any]) -> bool:
    """True if a value is a stored tensor, or made of one."""
    while name in producers and producers[name].op_type in _CONVERTING | _MOVING:
        name = producers[name].input[0]
    return name in constants
