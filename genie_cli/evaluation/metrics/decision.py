"""The class that a network decides for: the most likely one, or, of one output, the side of a threshold it lies on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from genie_cli.models.graph.capture import aten

_PROBABILITIES = (aten.sigmoid.default, aten.hardsigmoid.default)
_SAME_VALUES = (
    aten.reshape.default, aten.view.default, aten.flatten.using_ints, aten.squeeze.dims, aten.squeeze.dim,
    aten.unsqueeze.default, aten.clone.default, aten._to_copy.default, aten.permute.default,
)  # fmt: skip
"""Operations that hand values on as they are."""


@dataclass(frozen=True)
class Decision:
    """The rule by which outputs ``[B, num_outputs]`` become classes ``[B]``.

    Attributes:
        num_outputs: width of the output; 1: a binary network.
        threshold: of one output: above it is class 1, else class 0.
    """

    num_outputs: int
    threshold: float = 0.0

    @property
    def is_binary(self) -> bool:
        """True for one output, which tells two classes apart."""
        return self.num_outputs == 1

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return 2 if self.is_binary else self.num_outputs

    def classes(self, outputs: Tensor) -> Tensor:
        """The classes, int64 ``[B]``."""
        return (outputs[:, 0] > self.threshold).long() if self.is_binary else outputs.argmax(1)


def decision_of(graph_module: fx.GraphModule, num_outputs: int) -> Decision:
    """The rule of a captured network: one output is a logit, or a probability where the network ends in a sigmoid.

    Of a network that returns several tensors it is that of logits.
    """
    returned = next(iter(reversed(graph_module.graph.nodes))).all_input_nodes
    if len(returned) != 1:
        return Decision(num_outputs)
    (node,) = returned
    while node.target in _SAME_VALUES:
        node = node.all_input_nodes[0]
    return Decision(num_outputs, 0.5 if node.target in _PROBABILITIES else 0.0)
