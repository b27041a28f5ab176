"""A program as an ONNX file: torch's exporter, and what it does not know of quantize and dequantize operations.

QuantizeLinear and DequantizeLinear stand around the layers (QDQ), which runtimes fuse into integer kernels. Activations
of fewer bits than their type are clipped between the two. Packed weights are int4 or uint4 (opset 21).
"""

from __future__ import annotations

import ast
import logging
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import fx

from genie_cli.deployment.integer_form import PACKED_BITS, Storage
from genie_cli.deployment.metadata import KEY, ExportMetadata
from genie_cli.deployment.program import INPUT, Program, scope_of
from genie_cli.errors import InputError, UsageError
from genie_cli.runtime.extras import required
from genie_cli.student.quantized_layers import layer_name

LOWEST_OPSET, OPSET_OF_NEW_TYPES = 18, 21
"""That of torch's exporter; that which has int4, uint4, and integers of 16 bits in QuantizeLinear."""
_BATCH = "batch"
_SCOPES = "pkg.torch.onnx.name_scopes"
_UNTRANSLATED = re.compile(r"node %(\w+) .*?args = \(([^)]*)")
"""A node that the exporter failed on, and the nodes that it reads."""
_QUANTIZERS = re.compile(r"^.*?(weight_quantizers|bias_integers)\.([^.]+)\.(\w+)$")

_quantized = torch.ops.quantized_decomposed


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
    onnx, ir = required("onnx"), required("onnx_ir")
    lowest, highest = needed_opset(storage, program), onnx.defs.onnx_opset_version()
    if opset is not None and not lowest <= opset <= highest:
        raise UsageError(
            f"--opset {opset} cannot hold this network: it needs {lowest} or more, and the installed onnx "
            f"{onnx.__version__} knows {highest} at most."
        )
    model = _translated(program, opset or lowest)
    _name_nodes(model)
    common = required("onnx_ir.passes.common")
    common.ClearMetadataAndDocStringPass()(model)
    _name_initializers(model)
    if storage == "packed":
        _pack(model, ir)
    _name_batch(model, ir)
    model.graph.name = "genie"
    model.metadata_props[KEY] = metadata.encoded()
    content: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return content


def _translated(program: Program, opset: int) -> Any:
    required("onnxscript")
    try:
        with _quiet():
            translated = torch.onnx.export(
                program.exported,
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(program.outputs),
                custom_translation_table=_translations(opset),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise InputError(_untranslated(error, program, opset)) from error
    assert translated is not None
    return translated.model


@contextmanager
def _quiet() -> Iterator[None]:
    """Around the exporter, which warns of packages that this network does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _untranslated(error: Exception, program: Program, opset: int) -> str:
    """The operation that the exporter failed on, and its layer, as a message."""
    text = "".join(traceback.format_exception(error))  # with its causes, of which one names the node
    nodes: dict[str, fx.Node] = {node.name: node for node in program.exported.graph.nodes}
    found = _named_node(text, nodes)
    if found is None:
        return f"The network cannot be written as ONNX of opset {opset}: {str(error).partition(chr(10))[0]}"
    scope = scope_of(found)
    where = f" of layer '{scope}'" if scope else ""
    return (
        f"The operation {found.target}{where} cannot be written as ONNX of opset {opset}: replace it in the network, "
        "give a higher --opset, or use --format pt2."
    )


def _named_node(text: str, nodes: Mapping[str, fx.Node]) -> fx.Node | None:
    """The node of the program that an error of the exporter names.

    The exporter may name a part of it, as it takes some operations apart: then it is the reader of what that part
    reads.
    """
    for name, read in _UNTRANSLATED.findall(text):
        if name in nodes:
            return nodes[name]
        sources = [nodes[source] for source in re.findall(r"%(\w+)", read) if source in nodes]
        readers = [reader for source in sources for reader in source.users if reader.op == "call_function"]
        if readers:
            return readers[0]
    return None


def _translations(opset: int) -> dict[Any, Callable[..., Any]]:
    """Operation -> the function that writes it in ONNX."""
    op = required("onnxscript").values.Opset("", opset)
    ir = required("onnx_ir")

    def constant(value: float | list[int], dtype: Any) -> Any:
        return op.Constant(value=ir.tensor(np.array(value, dtype=dtype)))

    def dequantize_per_channel(
        codes: Any, scale: Any, zero_point: Any, axis: int, quant_min: int, quant_max: int, dtype: Any
    ) -> Any:
        return op.DequantizeLinear(codes, scale, op.Cast(zero_point, to=int(dtype)), axis=axis)

    def quantize_per_tensor(x: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: Any) -> Any:
        kind = dtype.numpy()
        codes = op.QuantizeLinear(x, constant(scale, np.float32), constant(zero_point, kind))
        limits = np.iinfo(kind)
        if (quant_min, quant_max) == (limits.min, limits.max):
            return codes
        return op.Clip(codes, constant(quant_min, kind), constant(quant_max, kind))

    def dequantize_per_tensor(
        codes: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: Any
    ) -> Any:
        return op.DequantizeLinear(codes, constant(scale, np.float32), constant(zero_point, dtype.numpy()))

    def mean(x: Any, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: Any = None) -> Any:
        rank = len(x.shape)
        axes = sorted(axis % rank for axis in (dim or range(rank)))
        if axes != list(range(2, rank)):
            return op.ReduceMean(x, constant(axes, np.int64), keepdims=int(keepdim))
        pooled = op.GlobalAveragePool(x)  # of which runtimes have an integer kernel
        return pooled if keepdim else op.Squeeze(pooled, constant(axes, np.int64))

    return {
        torch.ops.aten.mean.dim: mean,
        _quantized.dequantize_per_channel.default: dequantize_per_channel,
        _quantized.quantize_per_tensor.default: quantize_per_tensor,
        _quantized.dequantize_per_tensor.default: dequantize_per_tensor,
    }


def _name_nodes(model: Any) -> None:
    """Call each node after the module that it comes from and its operator: ``layer1.0.conv1/Conv``."""
    counts: Counter[str] = Counter()
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "['']"))
        scope = (scopes[-2] if len(scopes) > 1 else "").removeprefix("network").lstrip(".")
        name = f"{scope}/{node.op_type}".lstrip("/")
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"


def _name_initializers(model: Any) -> None:
    """Call stored integers after their layer: ``layer1.0.conv1.weight.codes``."""
    for name, value in list(model.graph.initializers.items()):
        match = _QUANTIZERS.match(name)
        if match is not None:
            part = "weight" if match[1] == "weight_quantizers" else "bias"
            value.name = f"{layer_name(f'{match[1]}.{match[2]}')}.{part}.{match[3]}"
        else:
            value.name = name.removeprefix("network.")


def _name_batch(model: Any, ir: Any) -> None:
    """Call the number of images ``batch``, which torch numbers otherwise in each process."""
    (images,) = model.graph.inputs
    traced = images.shape[0]
    for value in [*model.graph.inputs, *model.graph.outputs, *(out for node in model.graph for out in node.outputs)]:
        value.metadata_props.clear()
        if value.shape is not None:
            value.shape = ir.Shape([_BATCH if side == traced else _known(side) for side in value.shape])


def _known(side: Any) -> Any:
    """A side of a shape; None where it depends on the number of images in some other way."""
    return side if isinstance(side, int) else None


def _pack(model: Any, ir: Any) -> None:
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
                name = f"{node.inputs[0 if place == 0 else 1].name}.{'packed' if place == 0 else 'zero_point4'}"
                tensor = ir.Tensor(value.astype(dtype.numpy()), dtype=dtype, name=name)
                packed = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(value.shape), const_value=tensor)
                model.graph.register_initializer(packed)
                node.replace_input_with(place, packed)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
