"""The outputs of a network as metrics take them: the class scores, all that it returns, or its flat tensors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from genie_cli.evaluation.metrics.decision import Decision, decision_of
from genie_cli.models.graph.outputs import structured
from genie_cli.models.logits import Logits, why_no_logits
from genie_cli.models.teacher import Teacher


@dataclass(frozen=True)
class NetworkOutputs:
    """Facts on the outputs of one network.

    Attributes:
        names: of the tensors that its graph computes.
        decision: the rule by which class scores become classes; None: it has no class scores.
        logits: the output that holds them, None where it is the only one, or there is none.
        threshold: of a segmenter of one channel: above it a pixel is of class 1.
        why_no_logits: the reason why there are no class scores.
    """

    names: tuple[str, ...]
    decision: Decision | None
    logits: Logits | None = None
    threshold: float = 0.0
    why_no_logits: str = ""

    @classmethod
    def of(cls, teacher: Teacher) -> NetworkOutputs:
        """Those of a teacher."""
        names, logits = teacher.outputs.names, teacher.logits
        if logits is None:
            threshold = decision_of(teacher.graph, 1).threshold if len(names) == 1 else 0.0
            return cls(names, None, None, threshold, why_no_logits(teacher.outputs))
        decision = decision_of(logits.of(teacher.graph), logits.num_classes)
        return cls(names, decision, logits, decision.threshold)

    def scores(self, graph: fx.GraphModule) -> fx.GraphModule:
        """The part of a graph that gives class scores ``[B, K]``."""
        return graph if self.logits is None else self.logits.of(graph)


def as_returned(graph: fx.GraphModule) -> fx.GraphModule:
    """A graph that returns what the network returns: a tensor, or several in dicts and tuples."""
    return structured(graph)


def as_computed(graph: fx.GraphModule) -> fx.GraphModule:
    """A graph that returns its tensors: one, or a tuple in the order of `NetworkOutputs.names`."""
    return graph
