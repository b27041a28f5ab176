"""A program as an ONNX file: torch's exporter, and what it does not know of quantize and dequantize operations.

QuantizeLinear and DequantizeLinear stand around the layers (QDQ), which runtimes fuse into integer kernels. Activations
of fewer bits than their type are clipped between the two. Packed weights are int4 or uint4 (opset 21).
"""

from __future__ import annotations

from typing import Any

import torch

from genie_cli.deployment.integer_form import PACKED_BITS, Storage
from genie_cli.deployment.metadata import KEY, ExportMetadata
from genie_cli.deployment.onnx_names import name_batch, name_nodes, name_tensors
from genie_cli.deployment.onnx_translation import LOWEST_OPSET, highest_opset, translated
from genie_cli.deployment.program import Program
from genie_cli.errors import UsageError
from genie_cli.models.graph.fresh_names import FreshNames
from genie_cli.runtime.extras import required

OPSET_OF_NEW_TYPES = 21
"""That which has int4, uint4, and integers of 16 bits in QuantizeLinear."""


def needed_opset(storage: Storage | None, program: Program) -> int:
    """The lowest opset that can hold a program.

    Args:
        storage: of its weights; None: they are in float.
        program: the program.
    """
    has_wide = any(torch.uint16 in node.args for node in program.exported.graph.nodes if node.op == "call_function")
    return OPSET_OF_NEW_TYPES if storage == "packed" or has_wide else LOWEST_OPSET


def onnx_bytes(program: Program, storage: Storage | None, opset: int | None, metadata: ExportMetadata) -> bytes:
    """The ONNX file of a program; the same program gives the same bytes.

    Args:
        program: the program.
        storage: of its weights; None: they are in float.
        opset: version of the operators; None: the lowest that can hold it.
        metadata: what the file says of itself.

    Raises:
        UsageError: the opset is too low or unknown, or a package is not installed.
        InputError: an operation that ONNX cannot say, named with its layer.
    """
    ir, lowest = required("onnx_ir"), needed_opset(storage, program)
    if opset is not None:
        _check_opset(opset, lowest)
    model = translated(program, opset or lowest)
    name_nodes(model)
    common = required("onnx_ir.passes.common")
    common.ClearMetadataAndDocStringPass()(model)
    names = name_tensors(model, program.outputs)
    if storage == "packed":
        _pack(model, ir, names)
    name_batch(model, ir)
    model.graph.name = "genie"
    model.metadata_props[KEY] = metadata.encoded()
    content: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return content


def _check_opset(opset: int, lowest: int) -> None:
    highest = highest_opset()
    if not lowest <= opset <= highest:
        versions = " and ".join(f"{name} {required(name).__version__}" for name in ("onnx", "onnxscript"))
        raise UsageError(
            f"--opset {opset} cannot hold this network: it needs {lowest} or more, and the installed {versions} write "
            f"{highest} at most."
        )


def _pack(model: Any, ir: Any, names: FreshNames) -> None:
    """Store the weights that have at most 16 codes as int4 or uint4, and their zero points too."""
    for node in model.graph:
        if node.op_type != "DequantizeLinear":
            continue
        codes, _, zero_point = node.inputs
        if codes.const_value is None or codes.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
            continue
        values = codes.const_value.numpy(), zero_point.const_value.numpy()
        is_signed = codes.dtype == ir.DataType.INT8
        low = -(1 << (PACKED_BITS - 1)) if is_signed else 0
        high = low + (1 << PACKED_BITS) - 1
        if all(low <= value.min() and value.max() <= high for value in values):
            dtype = ir.DataType.INT4 if is_signed else ir.DataType.UINT4
            for place, value in ((0, values[0]), (2, values[1])):
                part = "packed" if place == 0 else "zero_point4"
                name = names.fresh(f"{node.inputs[0 if place == 0 else 1].name}.{part}")
                tensor = ir.Tensor(value.astype(dtype.numpy()), dtype=dtype, name=name)
                packed = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(value.shape), const_value=tensor)
                model.graph.register_initializer(packed)
                node.replace_input_with(place, packed)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
