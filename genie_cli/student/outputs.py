"""Outputs that an accelerator stores as integers: those of additions and of the last weight layers.

Protocol ``hardware`` quantizes them too (after "all layers quantized" in Dikstein et al., Data Generation
for Hardware-Friendly Post-Training Quantization, 2024). An accelerator applies an activation function before it
rounds, so the tensor behind the function is the one that is quantized.
"""

from __future__ import annotations

from torch import Tensor, fx

from genie_cli.models.graph.activation_functions import ELEMENTWISE
from genie_cli.models.graph.capture import aten
from genie_cli.models.graph.cuts import data_nodes, output_nodes
from genie_cli.models.graph.layers import last_layer_of


def handed_on_outputs(folded: fx.GraphModule) -> list[fx.Node]:
    """The outputs of additions of two activations and of the last weight layers, each behind its activation function.

    A network has a last layer for each of its outputs.
    Each node is returned once, in no particular order. An addition of a parameter or a constant does not count:
    it is a bias.
    """
    activations = computed_from_images(folded)
    producers = [node for node in data_nodes(folded) if _adds_two(node, activations)]
    last = [last_layer_of(folded, output) for output in output_nodes(folded)]
    producers += [layer.node for layer in last if layer is not None]
    return list(dict.fromkeys(_behind_activation_function(node) for node in producers))


def _adds_two(node: fx.Node, activations: set[fx.Node]) -> bool:
    value = node.meta.get("val")
    return (
        node.target is aten.add.Tensor
        and all(addend in activations for addend in node.args[:2])
        and isinstance(value, Tensor)
        and value.is_floating_point()
    )


def computed_from_images(folded: fx.GraphModule) -> set[fx.Node]:
    """The nodes with pixels in their values, not merely the number of images in their shapes."""
    found: set[fx.Node] = set()
    for node in data_nodes(folded):
        is_number = not isinstance(node.meta.get("val"), Tensor | list | tuple)  # a size
        if node.op == "placeholder" or (not is_number and any(source in found for source in node.all_input_nodes)):
            found.add(node)
    return found


def _behind_activation_function(node: fx.Node) -> fx.Node:
    """The activation function that alone reads `node`, else `node` itself."""
    readers = list(node.users)
    if len(readers) == 1 and readers[0].target in ELEMENTWISE and readers[0].args[0] is node:
        return readers[0]
    return node
