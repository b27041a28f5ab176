"""A protocol applied to one network, in data-flow order.

Activation sites are tensors: one tensor has one quantizer, whoever reads it, so a residual input shares the step size
of the tensor it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from genie_cli.config import WeightGrid
from genie_cli.config.bit_table import BitTable
from genie_cli.errors import UsageError
from genie_cli.models.graph.integer_operations import grid_source
from genie_cli.models.graph.layers import WeightLayer, weight_layers
from genie_cli.student.bit_plan import ActivationSite, BitPlan, Bits
from genie_cli.student.integer_tensors import integer_tensors
from genie_cli.student.outputs import handed_on_outputs
from genie_cli.student.overrides import layer_bits, table_bits
from genie_cli.student.protocol import Protocol
from genie_cli.student.tensor_names import tensor_names

EDGE_BITS = 8
"""Bits of the layers and tensors that a protocol exempts from the target, and of the tensors that no layer reads where
it quantizes them too. Activations have the target's where it is more."""


def assign_bits(
    folded: fx.GraphModule,
    protocol: Protocol,
    weight_bits: int,
    activation_bits: Bits,
    overrides: Mapping[str, tuple[int, Bits]] = {},
    weight_grid: WeightGrid = "asymmetric",
    table: BitTable | None = None,
) -> BitPlan:
    """Apply `protocol` to a folded graph: weights of every layer, inputs of every layer but the network's own.

    A tensor that several layers read has the largest of the bits that they ask for; it stays in float where one of them
    asks for that. An output that `protocol` quantizes has the target bits, unless layers read it.

    Args:
        folded: the folded graph.
        protocol: who is exempted, and which outputs count.
        weight_bits: target of the weights.
        activation_bits: target of the activations; None: they stay in float.
        overrides: pattern over layer names -> bits of weight and of input, which rank above the protocol; later
            patterns win. A layer that reads the images keeps them as they are.
        weight_grid: the grid of the weights that `protocol` leaves the choice for.
        table: layer -> bits of its weight, and site -> bits of its tensor, which rank above all else.

    Raises:
        UsageError: a pattern matches no layer or no site, or activations stay in float that `protocol` needs as
            integers.
    """
    layers = weight_layers(folded)
    images = image_tensors(folded, {layer.node for layer in layers})
    weights, input_bits = _bits_of_layers(layers, images, protocol, weight_bits, activation_bits, overrides)
    bits_of = _bits_of_tensors(folded, protocol, layers, input_bits, activation_bits, images)
    names = {node: name for name, node in tensor_names(folded).items()}
    if table is not None:
        can_be_sites = [names[node] for node in folded.graph.nodes if node in bits_of]
        of_layers, of_sites = table_bits(table, [layer.name for layer in layers], can_be_sites)
        weights.update(of_layers)
        bits_of = {node: of_sites.get(names[node], bits) for node, bits in bits_of.items()}
        if protocol.every_tensor and None in bits_of.values():
            raise _no_floats(protocol)
    sites = [
        ActivationSite(names[node], node.name, bits)
        for node in folded.graph.nodes
        if (bits := bits_of.get(node)) is not None
    ]
    symmetric = {
        name
        for name, bits in weights.items()
        if weight_grid == "symmetric" or (protocol.every_tensor and bits == EDGE_BITS)
    }
    return BitPlan(weights, tuple(sites), frozenset(symmetric))


def _bits_of_layers(
    layers: Sequence[WeightLayer],
    images: set[fx.Node],
    protocol: Protocol,
    weight_bits: int,
    activation_bits: Bits,
    overrides: Mapping[str, tuple[int, Bits]],
) -> tuple[dict[str, int], dict[fx.Node, Bits]]:
    """Layer -> bits of its weight, and layer's node -> bits that it asks for at its input."""
    own = layer_bits([layer.name for layer in layers], overrides)
    edges = _edges(layers, images)
    exempt_weights = {*edges.first, *edges.last} if protocol.edge_weights_8bit else set()
    exempt_inputs = edges.second if protocol.second_input_8bit else set()
    exempt_inputs = exempt_inputs | (edges.last if protocol.last_input_8bit else set())
    weights = {layer.name: EDGE_BITS if layer.node in exempt_weights else weight_bits for layer in layers}
    weights.update((name, bits) for name, (bits, _) in own.items())
    input_bits: dict[fx.Node, Bits] = {}
    for layer in layers:
        target = _at_least_8(activation_bits) if layer.node in exempt_inputs else activation_bits
        input_bits[layer.node] = own[layer.name][1] if layer.name in own else target
    return weights, input_bits


def _bits_of_tensors(
    folded: fx.GraphModule,
    protocol: Protocol,
    layers: Sequence[WeightLayer],
    input_bits: Mapping[fx.Node, Bits],
    activation_bits: Bits,
    images: set[fx.Node],
) -> dict[fx.Node, Bits]:
    """Of each tensor that is quantized the bits that layers ask for, else 8 or the target.

    These are the tensors that layers read and the outputs that count, or all that an integer kernel reads or writes.
    Images have none: they are 8-bit already.

    Raises:
        UsageError: activations that stay in float, where `protocol` needs all as integers.
    """
    if protocol.every_tensor and (activation_bits is None or None in input_bits.values()):
        raise _no_floats(protocol)
    asked: dict[fx.Node, Bits] = {}
    for layer in layers:
        for source in layer.sources:
            tensor = grid_source(source) if protocol.every_tensor else source
            if tensor not in images:
                asked[tensor] = _larger(input_bits[layer.node], asked.get(tensor, 0))
    if protocol.every_tensor:
        return {node: asked.get(node, _at_least_8(activation_bits)) for node in integer_tensors(folded)}
    for node in handed_on_outputs(folded) if protocol.outputs else ():
        if node not in images:
            asked.setdefault(node, activation_bits)
    return asked


def _no_floats(protocol: Protocol) -> UsageError:
    return UsageError(
        f"Protocol {protocol.name!r} quantizes every tensor that an integer kernel reads or writes and leaves no "
        "activation in float: give --activation-bits and each --bits-override a number, or another --protocol."
    )


def _at_least_8(bits: Bits) -> Bits:
    return None if bits is None else max(EDGE_BITS, bits)


def _larger(bits: Bits, other: Bits) -> Bits:
    return None if bits is None or other is None else max(bits, other)


@dataclass(frozen=True)
class _Edges:
    """The layers at the ends of a network, as nodes; stems and heads that stand side by side are all among them.

    Attributes:
        first: layers that read the images alone.
        second: for each first layer the next one in data-flow order that depends on it.
        last: layers behind which there is no other.
    """

    first: set[fx.Node]
    second: set[fx.Node]
    last: set[fx.Node]


def _edges(layers: Sequence[WeightLayer], images: set[fx.Node]) -> _Edges:
    nodes = [layer.node for layer in layers]
    first = {layer.node for layer in layers if all(source in images for source in layer.sources)}
    second, last = set(), set()
    for node in nodes:
        behind = _behind(node)
        if not behind.intersection(nodes):
            last.add(node)
        if node in first:
            second.update([other for other in nodes if other in behind and other not in first][:1])
    return _Edges(first, second, last)


def _behind(node: fx.Node) -> set[fx.Node]:
    """All nodes that depend on a node."""
    found: set[fx.Node] = set()
    waiting = list(node.users)
    while waiting:
        reader = waiting.pop()
        if reader not in found:
            found.add(reader)
            waiting += reader.users
    return found


def image_tensors(folded: fx.GraphModule, layers: set[fx.Node]) -> set[fx.Node]:
    """The network's input, and what is computed from it before the first weight layer."""
    images: set[fx.Node] = set()
    for node in folded.graph.nodes:
        inputs = [arg for arg in node.all_input_nodes if arg.op != "get_attr"]
        if node.op == "placeholder" or (inputs and node not in layers and all(arg in images for arg in inputs)):
            images.add(node)
    return images
