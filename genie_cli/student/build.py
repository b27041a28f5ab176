"""Put quantizers into a folded graph: the student as a graph module."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from genie_cli.models.graph.cuts import data_nodes, output_nodes
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.outputs import copy_structure
from genie_cli.models.graph.subgraph import extract
from genie_cli.models.graph.tensors import delete_tensor
from genie_cli.student.protocol import BitPlan


def insert_quantizers(
    folded: fx.GraphModule,
    plan: BitPlan,
    weights: Mapping[str, nn.Module],
    activations: Mapping[str, nn.Module],
    read_outputs_leave_raw: bool = False,
) -> fx.GraphModule:
    """A copy of `folded` in which quantizers compute the weights and the activation sites.

    Each activation quantizer stands right before the first reader of its tensor, so that it belongs
    to the reconstruction unit that reads the tensor. The quantizer of an output that no node reads stands last.
    Tensors other than weights are shared, not copied.

    Args:
        folded: the folded graph.
        plan: names of layers and sites.
        weights: layer name -> module without arguments that returns its weight.
        activations: site name -> module from the tensor to the quantized tensor.
        read_outputs_leave_raw: an output that nodes of the graph read too is returned as it is before its quantizer.
            A reconstruction unit returns such tensors so, since each later unit has the quantizer again.
    """
    nodes = data_nodes(folded)
    student = extract(folded, nodes, [node for node in nodes if node.op == "placeholder"], output_nodes(folded))
    copy_structure(folded, student)
    graph = student.graph
    by_name = {node.name: node for node in graph.nodes}
    for layer in weight_layers(student):
        target = f"weight_quantizers.{_safe(layer.name)}"
        student.add_submodule(target, weights[layer.name])
        with graph.inserting_before(layer.node):
            weight = graph.call_module(target)
        constant = layer.node.args[layer.operation.weight]
        assert isinstance(constant, fx.Node)
        layer.read_weight_from(weight)
        graph.erase_node(constant)
        delete_tensor(student, layer.weight_key)
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


def _safe(name: str) -> str:
    """A module name without dots, one to one."""
    return name.replace("_", "__").replace(".", "_d")
