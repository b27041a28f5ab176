"""The reconstruction losses, each with its gradient at the unit's output."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from genie_cli.quantization.learned.inner_product import inner_product


def squared_error(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Squared difference, summed over channels and averaged over the rest in float32; and its gradient.

    The difference of two bfloat16 values that are within a factor of two of each other is exact in bfloat16.

    Args:
        output: ``[B, C, ...]``, float32 or bfloat16.
        target: the same shape, either too.
    """
    places = target.numel() // target.shape[1]
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
