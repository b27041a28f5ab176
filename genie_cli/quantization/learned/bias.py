"""A bias that learns with the weights and step sizes of a unit, or of the whole network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx, nn

from genie_cli.models.graph.tensors import stored_tensors


class LearnedBias(nn.Module):
    """The place where a graph reads a bias ``[O]``: ``b = b_0 + unit * offset``, filled anew for each step.

    Attributes:
        start: b_0, ``[O]``.
        unit: how far an offset of 1 moves it: the root mean square of b_0; 0 where it is all zeros, which stays.
        value: the bias of this step.
    """

    start: Tensor
    unit: Tensor
    value: Tensor

    def __init__(self, start: Tensor) -> None:
        """Start from `start` ``[O]``."""
        super().__init__()
        self.register_buffer("start", start.detach().float().clone())
        self.register_buffer("unit", start.detach().float().square().mean().sqrt())
        self.register_buffer("value", self.start.clone())

    def forward(self) -> Tensor:
        """The bias of this step."""
        return self.value


def read_biases_from(student: fx.GraphModule, biases: Mapping[str, LearnedBias]) -> None:
    """Let modules give the biases of a graph, in place.

    Args:
        student: the graph.
        biases: tensor's name -> module; names that the graph does not read are passed over.
    """
    constants = stored_tensors(student)
    for number, (key, bias) in enumerate(biases.items()):
        if key not in constants:
            continue
        target = f"learned_biases.{number}"
        student.add_submodule(target, bias)
        for constant in constants[key]:
            with student.graph.inserting_before(constant):
                constant.replace_all_uses_with(student.graph.call_module(target))
            student.graph.erase_node(constant)
    student.recompile()
