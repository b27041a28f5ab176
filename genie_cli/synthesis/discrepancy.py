"""The adversarial term: images on which a quantized network differs from its teacher (ZAQ)."""

from __future__ import annotations

from torch import Tensor


def discrepancy_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Minus the mean absolute difference of two networks' logits ``[B, K]``, in float32.

    ZAQ (Liu et al., CVPR 2021): the generator makes it small, that is the difference large, while the
    student's training makes the difference small. Both logits pass their gradient on to the images.
    """
    return -(teacher_logits.float() - student_logits.float()).abs().mean()
