"""The names in an ONNX file: nodes are called after their modules, stored tensors after their layers.

Each name of a tensor stands once in a file. Inputs and outputs have theirs first, then stored tensors; what is computed
between gives way.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from genie_cli.deployment.program import INPUT
from genie_cli.models.graph.fresh_names import FreshNames
from genie_cli.student.quantized_layers import layer_name

_BATCH = "batch"
_SCOPES = "pkg.torch.onnx.name_scopes"
_QUANTIZERS = re.compile(r"^.*?(weight_quantizers|bias_integers)\.([^.]+)\.(\w+)$")


def name_nodes(model: Any) -> None:
    """Call each node after the module that it comes from and its operator: ``layer1.0.conv1/Conv``."""
    counts: Counter[str] = Counter()
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "['']"))
        scope = (scopes[-2] if len(scopes) > 1 else "").removeprefix("network").lstrip(".")
        name = f"{scope}/{node.op_type}".lstrip("/")
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"


def name_tensors(model: Any, outputs: Sequence[str]) -> FreshNames:
    """Call the input and the outputs as they are called, and stored tensors after their layers.

    An output that has the name of the input gets a number.

    Args:
        model: to be named.
        outputs: names of its outputs.

    Returns:
        The names that the file has then.
    """
    graph = model.graph
    (images,) = graph.inputs
    wanted = [(images, INPUT), *zip(graph.outputs, outputs, strict=True)]
    wanted += [(value, _stored_name(name)) for name, value in graph.initializers.items()]
    wanted += [(value, value.name) for value in _computed(graph) if value.name]
    names = FreshNames()
    found: dict[Any, str] = {}
    for value, name in wanted:
        if value not in found:
            found[value] = names.fresh(name)
    for number, value in enumerate(found):  # out of the way: two may exchange their names
        value.name = f"/{number}"
    for value, name in found.items():
        value.name = name
    return names


def _computed(graph: Any) -> Iterator[Any]:
    """The values that the nodes of a graph compute, and all values of the graphs inside them."""
    for node in graph:
        yield from node.outputs
        for attribute in node.attributes.values():
            if attribute.type.name not in ("GRAPH", "GRAPHS"):
                continue
            for inner in attribute.value if attribute.type.name == "GRAPHS" else (attribute.value,):
                yield from inner.inputs
                yield from inner.initializers.values()
                yield from _computed(inner)


def _stored_name(name: str) -> str:
    """A stored tensor's name, of integers after their layer: ``layer1.0.conv1.weight.codes``."""
    match = _QUANTIZERS.match(name)
    if match is None:
        return name.removeprefix("network.")
    part = "weight" if match[1] == "weight_quantizers" else "bias"
    return f"{layer_name(f'{match[1]}.{match[2]}')}.{part}.{match[3]}"


def name_batch(model: Any, ir: Any) -> None:
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
