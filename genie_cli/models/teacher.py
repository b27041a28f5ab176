"""A teacher: a pre-trained network as one captured graph, with its input, its name and its hash."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from genie_cli.config import InputSpec
from genie_cli.models.checkpoints import state_sha256
from genie_cli.models.graph.capture import capture


@dataclass(frozen=True)
class Teacher:
    """A captured pre-trained network.

    Attributes:
        name: the user's name for it, without a path: ``resnet18``, ``file.py:factory``.
        graph: its graph in the normal form, batch norms in place; evaluation mode, no gradients.
        input: the images it takes.
        sha256: hash of its state.
        num_classes: width of its output.
        notes: what the user should know of how the network was taken.
        warnings: what the user should look at.
    """

    name: str
    graph: fx.GraphModule
    input: InputSpec
    sha256: str
    num_classes: int
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def make_teacher(name: str, network: nn.Module, spec: InputSpec) -> Teacher:
    """Capture `network` as the teacher called `name`.

    Raises:
        InputError: the network cannot be captured.
    """
    graph = capture(network, spec)
    output = next(iter(reversed(graph.graph.nodes))).args[0]
    num_classes = int(output.meta["val"].shape[-1])
    return Teacher(name, graph, spec, state_sha256(network), num_classes)
