"""The weight layers of a captured graph, named after their parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from genie_cli.models.graph.capture import WEIGHT_LAYERS, aten

_KINDS: dict[Any, str] = {aten.linear.default: "linear", aten.conv1d.default: "conv1d", aten.conv3d.default: "conv3d"}


@dataclass(frozen=True)
class WeightLayer:
    """A convolution or linear node.

    Attributes:
        name: path of the layer, the weight's key without its last part, e.g. ``layer1.0.conv1``.
        node: the node that computes it.
        weight_key: key of its weight ``[O, ...]``.
        bias_key: key of its bias ``[O]``, or None.
    """

    name: str
    node: fx.Node
    weight_key: str
    bias_key: str | None

    @property
    def kind(self) -> str:
        """``conv2d``, ``linear``, ..."""
        return _KINDS.get(self.node.target, "conv2d")

    @property
    def stride(self) -> tuple[int, ...]:
        """Strides of a convolution; empty for a linear layer and where they are 1."""
        if self.kind == "linear" or len(self.node.args) < 4:
            return ()
        stride = self.node.args[3]
        assert isinstance(stride, list | tuple)
        return tuple(int(s) for s in stride)  # type: ignore[arg-type]

    @property
    def groups(self) -> int:
        """Groups of a convolution; equal to the input channels where it is depthwise."""
        return int(self.node.args[6]) if self.kind != "linear" and len(self.node.args) > 6 else 1  # type: ignore[arg-type]


def weight_layers(graph_module: fx.GraphModule) -> list[WeightLayer]:
    """The weight layers in data-flow order."""
    layers: list[WeightLayer] = []
    for node in graph_module.graph.nodes:
        if node.op != "call_function" or node.target not in WEIGHT_LAYERS:
            continue
        weight = node.args[1]
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            continue  # a product of two activations has no stored weight to quantize
        bias = node.args[2] if len(node.args) > 2 else None
        key = str(weight.target)
        name, _, leaf = key.rpartition(".")
        if leaf != "weight" or not name:
            name = key
        layers.append(WeightLayer(name, node, key, str(bias.target) if isinstance(bias, fx.Node) else None))
    return layers
