"""The weights of a unit's outputs in its loss."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from genie_cli.models.graph.cuts import output_nodes
from genie_cli.quantization.activations.errors import mean_energies
from genie_cli.quantization.activations.store import ActivationStore
from genie_cli.quantization.reconstruction.loss import output_weights
from genie_cli.quantization.stage import Stage


def target_weights(stage: Stage, outputs: Sequence[fx.Node], targets: Sequence[ActivationStore]) -> tuple[float, ...]:
    """The weights of outputs in the loss: the KL divergence is that of the class scores alone."""
    if len(outputs) == 1:
        return (1.0,)
    if stage.plan.config.loss == "kl":
        logits = stage.plan.teacher.logits
        assert logits is not None, "check_loss has refused it"
        scores = output_nodes(stage.plan.folded.graph)[logits.place]
        return tuple(float(node is scores) for node in outputs)
    return output_weights(mean_energies(targets, stage.context.workers))
