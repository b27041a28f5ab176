"""A teacher: a pre-trained network as one captured graph, with its input, its name and its hash."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import fx, nn

from genie_cli.config import InputSpec
from genie_cli.errors import InputError
from genie_cli.models.checkpoints import state_sha256
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.equivalence import Reference, make_reference
from genie_cli.models.preparation import prepared


@dataclass(frozen=True)
class Teacher:
    """A captured pre-trained network.

    Attributes:
        name: the user's name for it, without a path: ``resnet18``, ``file.py:factory``.
        graph: its graph in the normal form, batch norms in place; evaluation mode, no gradients.
        input: the images it takes.
        sha256: hash of its state.
        num_classes: width of its output.
        reference: the answers of the user's own module, with which rewrites are compared.
        capture_error: distance of `graph` from it.
        notes: what the user should know of how the network was taken.
        warnings: what the user should look at.
        source_sha256: hash of its state before it was reparameterized; None: it was not.
    """

    name: str
    graph: fx.GraphModule
    input: InputSpec
    sha256: str
    num_classes: int
    reference: Reference
    capture_error: float
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    source_sha256: str | None = None

    @property
    def known_sha256(self) -> set[str]:
        """The hashes by which artifacts that were made for this network name it."""
        return {self.sha256} if self.source_sha256 is None else {self.sha256, self.source_sha256}


def make_teacher(name: str, network: nn.Module, spec: InputSpec) -> Teacher:
    """Capture `network` as the teacher called `name`.

    Raises:
        InputError: the network cannot be captured, does not agree with itself, or its graph does not agree with it.
    """
    network, notes = prepared(network)
    graph = capture(_copied(network), spec)  # tracing may leave tensors without values in the modules
    reference, more_notes = make_reference(network, spec)
    error = reference.distance(graph)
    if not reference.holds(error):
        raise InputError(
            f"The captured graph of '{name}' does not compute what the network does: on two images of noise its output "
            f"differs by {error:.2g} of its size. Look for values that forward() reads out of tensors, or keeps from "
            "call to call, and take them out."
        )
    output = next(iter(reversed(graph.graph.nodes))).args[0]
    num_classes = int(output.meta["val"].shape[-1])
    return Teacher(name, graph, spec, state_sha256(network), num_classes, reference, error, (*notes, *more_notes))


def _copied(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except Exception:  # a file, a lock: modules may hold anything
        return network
