"""The weight layers of a captured graph, named after their parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from genie_cli.models.graph.operations import WeightOperation, operation_of
from genie_cli.models.graph.tensors import get_tensor, key_owner, named_tensors, set_tensor


@dataclass(frozen=True)
class WeightLayer:
    """A node that computes with a stored weight: a convolution, a linear layer, a product with a parameter.

    Attributes:
        name: path of the layer, the weight's key without its last part, e.g. ``layer1.0.conv1``.
        node: the node that computes it.
        operation: its kind, and the places of its arguments.
        weight_key: key of its weight ``[O, ...]``.
        bias_key: key of its bias ``[O]``, or None.
    """

    name: str
    node: fx.Node
    operation: WeightOperation
    weight_key: str
    bias_key: str | None

    @property
    def kind(self) -> str:
        """The name that people know: ``conv2d``, ``linear``, ..."""
        return self.operation.kind

    @property
    def sources(self) -> tuple[fx.Node, ...]:
        """The nodes whose values it reads, weight and bias apart."""
        nodes = tuple(self.node.args[place] for place in self.operation.inputs)
        assert all(isinstance(node, fx.Node) for node in nodes)
        return nodes  # type: ignore[return-value]

    @property
    def stride(self) -> tuple[int, ...]:
        """Strides of a convolution; empty where it has none to say."""
        stride = self._argument(self.operation.stride)
        return tuple(int(s) for s in stride) if isinstance(stride, list | tuple) else ()

    @property
    def is_strided_convolution(self) -> bool:
        """True for a convolution that leaves positions of its input out."""
        return self.kind in ("conv1d", "conv2d", "conv3d") and any(stride != 1 for stride in self.stride)

    @property
    def groups(self) -> int:
        """Groups of a convolution; equal to the input channels where it is depthwise."""
        groups = self._argument(self.operation.groups)
        return int(groups) if isinstance(groups, int) else 1

    def has_border(self, kernel: tuple[int, ...]) -> bool:
        """True for a convolution with a kernel of these sides that pads its input with zeros."""
        padding = self._argument(self.operation.padding)
        if padding == "same":
            return any(side > 1 for side in kernel)
        return isinstance(padding, list | tuple) and any(padding)

    def read_bias_from(self, node: fx.Node) -> None:
        """Let it read a bias from a node, where it had none before too."""
        assert self.operation.bias is not None
        args = [*self.node.args, *[None] * (self.operation.bias + 1 - len(self.node.args))]
        args[self.operation.bias] = node
        self.node.args = tuple(args)

    def _argument(self, place: int | None) -> object:
        return self.node.args[place] if place is not None and len(self.node.args) > place else None


def weight_layers(graph_module: fx.GraphModule) -> list[WeightLayer]:
    """The weight layers in data-flow order."""
    layers: list[WeightLayer] = []
    for node in graph_module.graph.nodes:
        operation = operation_of(node)
        if operation is None:
            continue
        weight = node.args[operation.weight]
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            continue  # a product of two activations: nothing stored to quantize
        has_bias = operation.bias is not None and len(node.args) > operation.bias
        bias = node.args[operation.bias] if has_bias and operation.bias is not None else None
        key = str(weight.target)
        bias_key = str(bias.target) if isinstance(bias, fx.Node) and bias.op == "get_attr" else None
        layers.append(WeightLayer(key_owner(key), node, operation, key, bias_key))
    return layers


def last_layer_of(graph_module: fx.GraphModule, node: fx.Node) -> WeightLayer | None:
    """The last weight layer, in data-flow order, that a node's value depends on; None where it depends on none."""
    needed, waiting = {node}, [node]
    while waiting:
        sources = [source for source in waiting.pop().all_input_nodes if source not in needed]
        needed.update(sources)
        waiting += sources
    return next((layer for layer in reversed(weight_layers(graph_module)) if layer.node in needed), None)


def set_bias(graph_module: fx.GraphModule, layer: WeightLayer, value: Tensor) -> None:
    """Set the bias ``[O]`` of a layer, which may have had none."""
    key = layer.bias_key or _free_bias_key(graph_module, layer)
    set_tensor(graph_module, key, value)
    if layer.bias_key is None:
        with graph_module.graph.inserting_before(layer.node):
            bias_node = graph_module.graph.get_attr(key)
        layer.read_bias_from(bias_node)


def _free_bias_key(graph_module: fx.GraphModule, layer: WeightLayer) -> str:
    """A free key for a bias that the layer did not have: beside its weight, and never that of another tensor."""
    owner, _, leaf = layer.weight_key.rpartition(".")
    key = f"{owner}.bias" if owner and leaf == "weight" else f"{layer.weight_key}_bias"
    taken = named_tensors(graph_module)
    while key in taken:
        key += "_folded"
    return key


def output_axis(graph_module: fx.GraphModule, layer: WeightLayer) -> int | None:
    """The dimension of the layer's output that holds the channels; None where there is no such one, or no batch."""
    return _channel_axis(graph_module, layer, layer.node)


def input_axis(graph_module: fx.GraphModule, layer: WeightLayer) -> int | None:
    """The dimension of the layer's input that holds the channels; None where there is no such one, or no batch."""
    return _channel_axis(graph_module, layer, layer.sources[0]) if len(layer.sources) == 1 else None


def _channel_axis(graph_module: fx.GraphModule, layer: WeightLayer, tensor: fx.Node) -> int | None:
    num_dims, axis = int(tensor.meta["val"].dim()), layer.operation.channels
    if axis == 1 and num_dims != get_tensor(graph_module, layer.weight_key).dim():
        return None  # a convolution of a single image
    return None if axis is None else axis % num_dims
