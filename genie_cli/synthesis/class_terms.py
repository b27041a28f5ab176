"""Losses on the class that the teacher sees in an image, beside the statistics loss: GDFQ, KW and IntraQ.

Each is a mean over the batch in float32 at least. Labels, confidences and classes are drawn before the
first step, so that every step has the same shapes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_TINY = 1e-6
"""Smallest norm that a feature is divided by (authors' constant)."""


def class_targets(num_images: int, num_classes: int, generator: torch.Generator) -> Tensor:
    """Labels ``[num_images]`` int64 in random order, as many of each class as of any other, or one fewer.

    The classes that get one more are random too, so that all classes are equally likely in a small batch.
    """
    order = torch.randperm(num_classes, generator=generator)
    places = torch.randperm(num_images, generator=generator)
    return order[places % num_classes]


def draw_confidences(num_images: int, lowest: float, generator: torch.Generator) -> Tensor:
    """Target probabilities of `soft_inception_loss`: ``[num_images]`` float32.

    Half of the images get 1, the others a uniform number from `lowest` to 1. The authors' code of IntraQ
    draws once per image, with `lowest` 0.95 for CIFAR-10, 0.6 for CIFAR-100, and 1 (every target is 1) for
    ImageNet.
    """
    drawn = lowest + (1 - lowest) * torch.rand(num_images, generator=generator)
    is_soft = torch.rand(num_images, generator=generator) < 0.5
    return torch.where(is_soft, drawn, 1.0)


def classification_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the teacher's logits with the classes assigned to the images.

    It is the loss of GDFQ (Xu et al., ECCV 2020; the authors' generator loss adds 0.1 times the statistics
    loss) and the inception loss of The Knowledge Within (Haroush et al., CVPR 2020). With targets between
    classes it is Qimera's loss (Choi et al., NeurIPS 2021).

    Args:
        logits: ``[B, K]``.
        targets: ``[B, K]`` probabilities of the classes, one-hot or soft.
    """
    return -(targets * _precise(logits).log_softmax(1)).sum(1).mean()


def soft_inception_loss(logits: Tensor, labels: Tensor, confidence: Tensor) -> Tensor:
    """Squared difference between the probability of each image's class and the target drawn for it.

    IntraQ (Zhong et al., CVPR 2022): images that are not all classified with certainty keep more of the
    variety in a class than cross-entropy does. The probabilities of the other classes are free.

    Args:
        logits: ``[B, K]``.
        labels: ``[B]`` int64.
        confidence: ``[B]`` in 0 to 1, see `draw_confidences`.
    """
    probabilities = _precise(logits).softmax(1)
    # a mask, not a gather: the backward pass of a gather scatters, which needs a deterministic variant
    is_own = labels.unsqueeze(1) == torch.arange(logits.shape[1], device=logits.device)
    return ((probabilities * is_own).sum(1) - confidence).square().mean()


def marginal_distance_loss(features: Tensor, labels: Tensor, low: float, high: float) -> Tensor:
    """Mean amount by which the cosine distances to the class centres lie outside `low` to `high`.

    IntraQ (Zhong et al., CVPR 2022): images of a class should neither be all alike nor leave it. A centre
    is the mean feature of the batch's images of a class, and a constant for the gradient. An image that is
    alone in its class is its own centre and adds nothing to the loss.

    The authors take the centres over the batches finished before, so their first batch has none. Their code
    has `low` and `high` 0.05 and 0.8 for CIFAR-10, 0.02 and 1 for CIFAR-100, 0 and 2 (no bounds) for
    ImageNet.

    Args:
        features: ``[B, D]``, the input of the teacher's classifier.
        labels: ``[B]`` int64.
        low: smallest distance without a loss, 0 to 2.
        high: largest distance without a loss.
    """
    features = _precise(features)
    is_same = labels.unsqueeze(0) == labels.unsqueeze(1)
    members = is_same.sum(1)
    centres = (is_same.to(features) @ features.detach()) / members.unsqueeze(1)
    distance = 1 - F.cosine_similarity(features, centres, dim=1, eps=_TINY)
    outside = (low - distance).clamp(min=0) + (distance - high).clamp(min=0)
    counts = members > 1
    return (outside * counts).sum() / counts.sum().clamp(min=1)


def _precise(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is float64 already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
