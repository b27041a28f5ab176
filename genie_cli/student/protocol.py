"""Protocols: who gets which bits. The main reason why published figures disagree.

A protocol decides on the folded graph in data-flow order. Activation sites are tensors: one tensor
has one quantizer, whoever reads it, so a residual input shares the step size of the tensor it
comes from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from genie_cli.config import WeightGrid
from genie_cli.config.bit_table import BitTable
from genie_cli.errors import UsageError, look_up
from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.integer_operations import grid_source
from genie_cli.models.graph.layers import WeightLayer, weight_layers
from genie_cli.student.formats import NumberFormat, weight_format
from genie_cli.student.integer_tensors import integer_tensors
from genie_cli.student.outputs import handed_on_outputs
from genie_cli.student.overrides import layer_bits, table_bits

EDGE_BITS = 8
"""Bits of the layers and tensors that a protocol exempts from the target, and of the tensors that no layer reads where
it quantizes them too. Activations have the target's where it is more."""
Bits = int | None
"""Bits of an activation; None: it stays in float, which ranks above any number of bits."""


@dataclass(frozen=True)
class Protocol:
    """Which weights and tensors are exempted from the target bits.

    Attributes:
        name: the name users give.
        summary: one line for the user.
        edge_weights_8bit: first and last layer's weights have 8 bits.
        second_input_8bit: the second layer's input has 8 bits.
        last_input_8bit: the last layer's input has 8 bits.
        outputs: the outputs of additions and of the last layer are quantized too, at the target bits.
        every_tensor: every tensor that an integer kernel reads or writes is quantized, and 8-bit weights have a
            symmetric grid: an integer runtime needs both.
    """

    name: str
    summary: str
    edge_weights_8bit: bool
    second_input_8bit: bool
    last_input_8bit: bool
    outputs: bool = False
    every_tensor: bool = False


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("genie", "first and last layer W8, second and last input A8 (BRECQ's)", True, True, True),
        Protocol("qdrop", "first and last layer W8, last input A8 (Table 5)", True, False, True),
        Protocol("ait", "every layer at the target bits (Table 4)", False, False, False),
        Protocol(
            "hardware",
            "every layer at the target bits, and the outputs of additions and of the last layer (ours, after DGH)",
            False,
            False,
            False,
            outputs=True,
        ),
        Protocol(
            "integer",
            "as genie, and every tensor that an integer kernel reads or writes A8; 8-bit weights symmetric (ours)",
            True,
            True,
            True,
            every_tensor=True,
        ),
    )
}


@dataclass(frozen=True)
class ActivationSite:
    """A tensor that is quantized.

    Attributes:
        name: after its first reader in data-flow order: ``layer1.0.conv1.input``; the network's output,
            which has none, after its producer: ``fc.output``.
        node: name of the node whose value it is.
        bits: bits of its codes.
    """

    name: str
    node: str
    bits: int


@dataclass(frozen=True)
class BitPlan:
    """Who gets which bits in one network.

    Attributes:
        weights: layer name -> bits.
        activations: the sites in order.
        symmetric_weights: the layers whose weights have a symmetric grid.
    """

    weights: dict[str, int]
    activations: tuple[ActivationSite, ...]
    symmetric_weights: frozenset[str] = frozenset()

    def weight_format(self, layer: str) -> NumberFormat:
        """The number format of a layer's weight."""
        return weight_format(self.weights[layer], "symmetric" if layer in self.symmetric_weights else "asymmetric")

    def part(self, layers: Iterable[str], sites: Sequence[ActivationSite]) -> BitPlan:
        """The plan of some of the layers and sites."""
        weights = {name: self.weights[name] for name in layers}
        return BitPlan(weights, tuple(sites), self.symmetric_weights & weights.keys())


def find_protocol(name: str) -> Protocol:
    """The protocol called `name`.

    Raises:
        UsageError: unknown name.
    """
    return look_up(PROTOCOLS, "protocol", name)


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
    if protocol.every_tensor:
        bits_of = _bits_of_all_tensors(folded, protocol, layers, input_bits, activation_bits, images)
    else:
        bits_of = _bits_of_inputs(folded, protocol, layers, input_bits, activation_bits, images)
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


def _bits_of_inputs(
    folded: fx.GraphModule,
    protocol: Protocol,
    layers: Sequence[WeightLayer],
    input_bits: Mapping[fx.Node, Bits],
    activation_bits: Bits,
    images: set[fx.Node],
) -> dict[fx.Node, Bits]:
    """Of each tensor that a layer reads, and of the outputs that count, the bits that layers ask for, else the target.

    Images have none: they are 8-bit already.
    """
    bits_of: dict[fx.Node, Bits] = {}
    for layer in layers:
        for source in layer.sources:
            if source not in images:
                bits_of[source] = _larger(input_bits[layer.node], bits_of.get(source, 0))
    for node in handed_on_outputs(folded) if protocol.outputs else ():
        if node not in images:
            bits_of.setdefault(node, activation_bits)
    return bits_of


def _bits_of_all_tensors(
    folded: fx.GraphModule,
    protocol: Protocol,
    layers: Sequence[WeightLayer],
    input_bits: Mapping[fx.Node, Bits],
    activation_bits: Bits,
    images: set[fx.Node],
) -> dict[fx.Node, Bits]:
    """Of each tensor that an integer kernel reads or writes the bits that layers ask for, else 8 or the target.

    Raises:
        UsageError: activations that stay in float.
    """
    if activation_bits is None or None in input_bits.values():
        raise _no_floats(protocol)
    asked: dict[fx.Node, Bits] = {}
    for layer in layers:
        for source in map(grid_source, layer.sources):
            if source not in images:
                asked[source] = _larger(input_bits[layer.node], asked.get(source, 0))
    return {node: asked.get(node, _at_least_8(activation_bits)) for node in integer_tensors(folded)}


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


def tensor_names(folded: fx.GraphModule) -> dict[str, fx.Node]:
    """Every tensor that some node reads, by its stable name: that of its first reader in data-flow order.

    ``layer1.0.conv1.input`` where a weight layer reads it first, else the operation, numbered within
    its module, and the side: ``layer1.0.add0.lhs``. The network's output, which no node reads, is named after
    its producer: ``fc.output``. Exporters' node names do not enter.
    """
    layer_of = {layer.node: layer.name for layer in weight_layers(folded)}
    nodes = data_nodes(folded)
    position = {node: i for i, node in enumerate(nodes)}
    counts: Counter[str] = Counter()
    names: dict[str, fx.Node] = {}
    reader_names: dict[fx.Node, str] = {}
    for node in nodes:
        scope = (node.meta.get("modules") or ("",))[-1]
        key = f"{scope}.{getattr(node.target, '__name__', 'op').split('.')[0]}".lstrip(".")
        reader_names[node] = layer_of.get(node, f"{key}{counts[key]}")
        counts[key] += node not in layer_of
    for node in nodes:
        readers = [user for user in node.users if user in position]
        if not readers:
            if any(user.op == "output" for user in node.users):
                names[f"{reader_names[node]}.output"] = node
            continue
        first = min(readers, key=position.__getitem__)
        inputs = [arg for arg in first.all_input_nodes if arg in position]
        side = "input" if len(inputs) < 2 else ("lhs" if inputs[0] is node else "rhs" if len(inputs) == 2 else "")
        name = f"{reader_names[first]}.{side or f'input{inputs.index(node)}'}"
        names[name] = node
    return names
