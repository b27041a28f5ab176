"""A program in the operators of ONNX, made by torch's exporter; and a message where that cannot be."""

from __future__ import annotations

import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from genie_cli.deployment.onnx_operations import translations
from genie_cli.deployment.program import Program, scope_of
from genie_cli.errors import InputError
from genie_cli.runtime.extras import required

LOWEST_OPSET = 18
"""That of torch's exporter."""
_LOGGERS = ("torch.onnx", "onnx_ir", "onnxscript")
_FAILED = re.compile(r"(?:node|While executing) %(\w+) .*?args = \(([^)]*)")
"""A node that the exporter failed on, and the nodes that it reads."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST_REASON = 200


def highest_opset() -> int:
    """The highest opset that the installed packages can write."""
    ir, converter = required("onnx_ir"), required("onnxscript.version_converter")
    for opset in range(required("onnx").defs.onnx_opset_version(), LOWEST_OPSET, -1):
        nothing = ir.Graph([], [], nodes=[], opset_imports={"": LOWEST_OPSET}, name="nothing")
        try:
            converter.convert_version(ir.Model(nothing, ir_version=10), opset, fallback=False)
        except Exception:  # of a kind that depends on the version
            continue
        return opset
    return LOWEST_OPSET


def translated(program: Program, opset: int) -> Any:
    """The model of a program, with the exporter's names.

    Raises:
        InputError: an operation that ONNX cannot say, named with its layer.
    """
    table = translations(opset)
    _make_scalars_alike(program)
    try:
        with _quiet():
            found = torch.onnx.export(
                program.exported, dynamo=True, opset_version=opset, custom_translation_table=table, verbose=False
            )
    except Exception as error:  # of any kind, as the exporter runs code of several packages on the network
        raise InputError(_untranslated(error, program, opset)) from error
    assert found is not None
    return found.model


@contextmanager
def _quiet() -> Iterator[None]:
    """Around the exporter, which warns of what this network does not need."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _make_scalars_alike(program: Program) -> None:
    """Write the numbers of an operation as floats where some of them are and its result is: ``clamp(0, 0.5)``.

    The exporter takes apart what has numbers of one kind alone.
    """
    for node in program.exported.graph.nodes:
        value = node.meta.get("val")
        if not isinstance(node.target, torch._ops.OpOverload) or not isinstance(value, Tensor):
            continue
        parameters = node.target._schema.arguments
        places = [place for place, each in enumerate(parameters[: len(node.args)]) if _is_number(each)]
        numbers = [node.args[place] for place in places]
        if value.is_floating_point() and any(type(number) is float for number in numbers):
            for place in places:
                if type(node.args[place]) is int:
                    node.update_arg(place, float(node.args[place]))


def _is_number(parameter: Any) -> bool:
    """True if a parameter of an operation takes an integer or a float, or may be left out."""
    return str(parameter.type) in ("number", "Optional[number]")


def _untranslated(error: Exception, program: Program, opset: int) -> str:
    """The operation that the exporter failed on, its layer, and the first cause, as a message."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = _COLOURS.sub("", str(cause)).strip().splitlines()
    reason = (lines[0] if lines else type(cause).__name__).partition(". Failure message")[0]
    reason = reason[:_LONGEST_REASON].rstrip(".")
    text = "".join(traceback.format_exception(error))  # with its causes, of which one names the node
    found = _named_node(text, {node.name: node for node in program.exported.graph.nodes})
    if found is None:
        lower = "give a lower --opset, or " if opset > LOWEST_OPSET else ""
        return f"The network cannot be written as ONNX of opset {opset} ({reason}): {lower}use --format pt2."
    scope = scope_of(found)
    where = f" of layer '{scope}'" if scope else ""
    return (
        f"The operation {found.target}{where} cannot be written as ONNX of opset {opset} ({reason}): replace it in "
        "the network, or use --format pt2."
    )


def _named_node(text: str, nodes: Mapping[str, fx.Node]) -> fx.Node | None:
    """The node of the program that an error of the exporter names.

    The exporter may name a part of it, as it takes some operations apart: then it is the reader of what that part
    reads.
    """
    for name, read in _FAILED.findall(text):
        if name in nodes:
            return nodes[name]
        sources = [nodes[source] for source in re.findall(r"%(\w+)", read) if source in nodes]
        readers = [reader for source in sources for reader in source.users if reader.op == "call_function"]
        if readers:
            return readers[0]
    return None
