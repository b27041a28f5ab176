"""Protocols: who gets which bits. The main reason why published figures disagree.

A protocol decides on the folded graph in data-flow order. Activation sites are tensors: one tensor
has one quantizer, whoever reads it, so a residual input shares the step size of the tensor it
comes from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from genie_cli.errors import look_up
from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.layers import WeightLayer, weight_layers
from genie_cli.student.outputs import handed_on_outputs
from genie_cli.student.overrides import layer_bits

EDGE_BITS = 8
"""Bits of the layers and tensors that a protocol exempts from the target."""


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
    """

    name: str
    summary: str
    edge_weights_8bit: bool
    second_input_8bit: bool
    last_input_8bit: bool
    outputs: bool = False


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
    """Who gets which bits in one network: layer name -> bits, and the activation sites in order."""

    weights: dict[str, int]
    activations: tuple[ActivationSite, ...]


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
    activation_bits: int,
    overrides: Mapping[str, tuple[int, int]] = {},
) -> BitPlan:
    """Apply `protocol` to a folded graph: weights of every layer, inputs of every layer but the network's own.

    A tensor that several layers read has the largest of the bits that they ask for. An output that `protocol`
    quantizes has the target bits, unless layers read it.

    Args:
        folded: the folded graph.
        protocol: who is exempted, and which outputs count.
        weight_bits: target of the weights.
        activation_bits: target of the activations.
        overrides: pattern over layer names -> bits of weight and of input, which rank above the protocol; later
            patterns win. A layer that reads the images keeps them as they are.

    Raises:
        UsageError: a pattern matches no layer.
    """
    layers = weight_layers(folded)
    own = layer_bits([layer.name for layer in layers], overrides)
    images = _images(folded, {layer.node for layer in layers})
    edges = _edges(layers, images)
    exempt_weights = {*edges.first, *edges.last} if protocol.edge_weights_8bit else set()
    exempt_inputs = edges.second if protocol.second_input_8bit else set()
    exempt_inputs = exempt_inputs | (edges.last if protocol.last_input_8bit else set())
    weights = {layer.name: EDGE_BITS if layer.node in exempt_weights else weight_bits for layer in layers}
    weights.update((name, bits) for name, (bits, _) in own.items())
    bits_of: dict[fx.Node, int] = {}
    for layer in layers:
        is_exempt = layer.node in exempt_inputs
        bits = own[layer.name][1] if layer.name in own else EDGE_BITS if is_exempt else activation_bits
        for source in layer.sources:
            if source not in images:  # which are 8-bit already
                bits_of[source] = max(bits, bits_of.get(source, 0))
    for node in handed_on_outputs(folded) if protocol.outputs else ():
        if node not in images:
            bits_of.setdefault(node, activation_bits)
    names = {node: name for name, node in tensor_names(folded).items()}
    order = [node for node in folded.graph.nodes if node in bits_of]
    return BitPlan(weights, tuple(ActivationSite(names[node], node.name, bits_of[node]) for node in order))


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


def _images(folded: fx.GraphModule, layers: set[fx.Node]) -> set[fx.Node]:
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
