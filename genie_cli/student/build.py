"""Put quantizers into a folded graph: the student as a graph module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx, nn

from genie_cli.models.graph.cuts import data_nodes, output_nodes
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.outputs import copy_structure
from genie_cli.models.graph.subgraph import extract
from genie_cli.models.graph.tensors import delete_tensor, key_owner, stored_tensors
from genie_cli.student.bit_plan import BitPlan


def insert_quantizers(
    folded: fx.GraphModule,
    plan: BitPlan,
    weights: Mapping[str, nn.Module],
    activations: Mapping[str, nn.Module],
    read_outputs_leave_raw: bool = False,
) -> fx.GraphModule:
    """A copy of `folded` in which quantizers compute the weights, the slopes and the activation sites.

    Each activation quantizer stands right before the first reader of its tensor, so that it belongs
    to the reconstruction unit that reads the tensor. The quantizer of an output that no node reads stands last.
    All other tensors are shared, not copied.

    Args:
        folded: the folded graph.
        plan: names of layers and sites.
        weights: layer name -> module without arguments that returns its weight; and the same of slopes, which stay as
            they are where there is none.
        activations: site name -> module from the tensor to the quantized tensor.
        read_outputs_leave_raw: an output that nodes of the graph read too is returned as it is before its quantizer.
            A reconstruction unit returns such tensors so, since each later unit has the quantizer again.
    """
    nodes = data_nodes(folded)
    student = extract(folded, nodes, [node for node in nodes if node.op == "placeholder"], output_nodes(folded))
    copy_structure(folded, student)
    graph = student.graph
    by_name = {node.name: node for node in graph.nodes}
    layers = [layer.name for layer in weight_layers(student)]
    assert weights.keys() >= set(layers), f"weights are missing of {set(layers) - weights.keys()}"
    for key, constants in stored_tensors(student).items():
        name = key_owner(key)
        if name in weights:
            target = f"weight_quantizers.{_safe(name)}"
            student.add_submodule(target, weights[name])
            _read_from(student, target, constants)
            delete_tensor(student, key)
    for site in plan.activations:
        node = by_name[site.node]
        target = f"activation_quantizers.{_safe(site.name)}"
        student.add_submodule(target, activations[site.name])
        readers = [user for user in graph.nodes if user in node.users]
        with graph.inserting_before(readers[0]):
            quantized = graph.call_module(target, (node,))
        quantized.meta = dict(node.meta)
        is_raw = read_outputs_leave_raw and len(readers) > 1
        moved = {user for user in readers if not (is_raw and user.op == "output")}
        node.replace_all_uses_with(quantized, delete_user_cb=moved.__contains__)
    graph.eliminate_dead_code()
    graph.lint()
    student.recompile()
    return student


def _read_from(student: fx.GraphModule, target: str, constants: Sequence[fx.Node]) -> None:
    """Let the readers of a stored tensor read what a module returns."""
    graph = student.graph
    readers = {reader for constant in constants for reader in constant.users}
    with graph.inserting_before(next(node for node in graph.nodes if node in readers)):
        value = graph.call_module(target)
    for constant in constants:
        constant.replace_all_uses_with(value)
        graph.erase_node(constant)


def _safe(name: str) -> str:
    """A module name without dots, one to one."""
    return name.replace("_", "__").replace(".", "_d")
