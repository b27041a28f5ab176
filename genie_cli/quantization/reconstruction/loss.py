"""The reconstruction losses, each with its gradient at the output, and the weights of several outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional

from genie_cli.quantization.activations.errors import num_places
from genie_cli.quantization.learned.inner_product import inner_product

Compare = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""The loss of an output against its target, and its gradient at the output."""
_LEAST_SHARE = 1e-6
"""Of the mean energy: an output with less of it counts as if it had this much, so that no weight is without bound."""


def output_weights(energies: Sequence[float]) -> tuple[float, ...]:
    """Weights of several outputs' squared errors, such that each counts relative to its own energy.

    The weight is the mean energy over the output's own, so that the loss of outputs that are all 0 is what it would be
    without weights. One output, or outputs of equal energy, have the weight 1.

    Args:
        energies: of each output, see `mean_energies`.
    """
    mean = sum(energies) / len(energies)
    if len(energies) == 1 or not mean:
        return (1.0,) * len(energies)
    return tuple(mean / max(energy, _LEAST_SHARE * mean) for energy in energies)


def squared_error(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Squared difference, summed over channels and averaged over the rest in float32; and its gradient.

    The difference of two bfloat16 values that are within a factor of two of each other is exact in bfloat16.

    Args:
        output: ``[B, C, ...]``, float32 or bfloat16.
        target: the same shape, either too.
    """
    places = num_places(target)
    difference = output - target
    exact = difference.float()
    loss = inner_product(exact, exact) / places
    return loss, difference.mul_(2 / places).to(output.dtype)


def kl_divergence(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Of the student's class probabilities from the teacher's, averaged over the batch, in float32; and its gradient.

    Args:
        output: logits ``[B, K]``, float32 or bfloat16.
        target: the teacher's logits, either too.
    """
    own, wanted = (functional.log_softmax(logits.float(), 1) for logits in (output, target))
    loss = functional.kl_div(own, wanted, reduction="batchmean", log_target=True)
    return loss, (own.exp() - wanted.exp()).div_(len(output)).to(output.dtype)


def find_loss(name: str) -> Compare:
    """The loss that a configuration names: ``squared`` or ``kl``."""
    return kl_divergence if name == "kl" else squared_error
