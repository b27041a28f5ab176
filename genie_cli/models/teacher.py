"""A teacher: a pre-trained network as one captured graph, with its input, its name and its hash."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

from torch import fx, nn

from genie_cli.config import InputSpec
from genie_cli.errors import InputError
from genie_cli.models.checkpoints import state_sha256
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.equivalence import Reference, make_reference
from genie_cli.models.graph.outputs import OutputTree, outputs_of
from genie_cli.models.logits import Logits, find_logits
from genie_cli.models.preparation import prepared


@dataclass(frozen=True)
class Teacher:
    """A captured pre-trained network.

    Attributes:
        name: the user's name for it, without a path: ``resnet18``, ``file.py:factory``.
        graph: its graph in the normal form, batch norms in place; evaluation mode, no gradients.
        input: the images it takes.
        sha256: hash of its state.
        logits: the output that holds a score for each class; None where it has none, or where several may be meant.
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
    logits: Logits | None
    reference: Reference
    capture_error: float
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    source_sha256: str | None = None

    @property
    def known_sha256(self) -> set[str]:
        """The hashes by which artifacts that were made for this network name it."""
        return {self.sha256} if self.source_sha256 is None else {self.sha256, self.source_sha256}

    @property
    def outputs(self) -> OutputTree:
        """The structure of what it returns."""
        return outputs_of(self.graph)

    @property
    def num_classes(self) -> int | None:
        """Number of scores in `logits`; None where there are none."""
        return None if self.logits is None else self.logits.num_classes

    def reading(self, logits: str) -> Teacher:
        """The same network, whose class scores are the output called `logits`.

        Raises:
            UsageError: no output is called so, or it holds no class scores.
        """
        return replace(self, logits=find_logits(self.outputs, logits))


def make_teacher(name: str, network: nn.Module, spec: InputSpec) -> Teacher:
    """Capture `network` as the teacher called `name`; its class scores are the only output that can hold them.

    Raises:
        InputError: the network cannot be captured, does not agree with itself, or its graph does not agree with it.
    """
    network, notes = prepared(network)
    graph = capture(_copied(network), spec)  # tracing may leave tensors without values in the modules
    outputs = outputs_of(graph)
    reference, more_notes = make_reference(network, spec, outputs.flat)
    error = reference.distance(graph)
    if not reference.holds(error):
        raise InputError(
            f"The captured graph of '{name}' does not compute what the network does: on two images of noise its output "
            f"differs by {error:.2g} of its size. Look for values that forward() reads out of tensors, or keeps from "
            "call to call, and take them out."
        )
    notes = [*notes, *more_notes, *outputs.notes]
    return Teacher(name, graph, spec, state_sha256(network), find_logits(outputs), reference, error, tuple(notes))


def _copied(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except Exception:  # a file, a lock: modules may hold anything
        return network
