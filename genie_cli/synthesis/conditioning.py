"""Latents of a class, or between classes: a generator's input besides noise (GDFQ, Qimera)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LabelConditioning(nn.Module):
    """Latents that are noise times a learned embedding of the image's class (GDFQ; Xu et al., ECCV 2020)."""

    def __init__(self, num_classes: int, latent_dim: int) -> None:
        """Draw the embeddings from the normal distribution, as ``nn.Embedding`` does."""
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(num_classes, latent_dim))

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Noise ``[B, latent_dim]`` and labels ``[B]`` int64 to latents ``[B, latent_dim]``."""
        # a product with one-hot rows, because the backward pass of a lookup scatters or sorts
        latents: Tensor = noise * (_one_hot(labels, len(self.embeddings)) @ self.embeddings)
        return latents


class SuperposedConditioning(nn.Module):
    """Noise around a point between the embeddings of several classes (Qimera; Choi et al., NeurIPS 2021).

    The embeddings start as the rows of the teacher's classifier, which separate its features by class. A
    learned linear map takes them to the latents' size (the disentanglement mapping). Each embedding is
    normalised before the map, as in the authors' code, because a classifier's rows are small beside noise.
    The noise is added after the map, where it has the latents' size; the authors add it before.
    """

    def __init__(self, num_classes: int, latent_dim: int, class_weights: Tensor | None = None) -> None:
        """Copy the embeddings from `class_weights` ``[num_classes, ...]``, or draw them; they learn in both cases."""
        super().__init__()
        if class_weights is None:
            class_weights = torch.randn(num_classes, latent_dim)
        self.embeddings = nn.Parameter(class_weights.detach().flatten(1).float().clone())
        self.mapping = nn.Linear(self.embeddings.shape[1], latent_dim)

    def forward(self, noise: Tensor, classes: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Latents ``[B, latent_dim]`` and soft targets ``[B, num_classes]``.

        Args:
            noise: ``[B, latent_dim]``.
            classes: ``[B, M]`` int64, see `draw_superpositions`.
            shares: ``[B, M]``, the classes' shares, which sum to 1.
        """
        targets = (_one_hot(classes, len(self.embeddings)) * shares.unsqueeze(2)).sum(1)
        mapped = self.mapping(F.layer_norm(self.embeddings, self.embeddings.shape[1:]))
        return targets @ mapped + noise, targets


def draw_superpositions(
    labels: Tensor, num_classes: int, num_mixed: int, prob: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Classes and shares of every image, ``[..., num_mixed]`` int64 and float32 for labels ``[...]``.

    An image's first class is its label and has the largest share, so that it stays the likeliest class.
    The others are drawn, and may repeat. Shares are the softmax of normal numbers. The authors mix 2
    classes for CIFAR-10, 10 for CIFAR-100 and 500 for ImageNet, with probability 0.4 (0.7 for ResNet-50),
    for all images of a step or for none. Here each image is drawn on its own.

    Args:
        labels: int64, any shape: ``[B]`` for images that keep their classes, ``[steps, B]`` for new ones.
        num_classes: classes of the teacher.
        num_mixed: classes per image, at least 1.
        prob: probability of a mixture; the other images have their label's class alone.
        generator: source of the random numbers, on the CPU.
    """
    shape = (*labels.shape, num_mixed)
    classes = torch.randint(num_classes, shape, generator=generator)
    classes[..., 0] = labels
    shares = torch.randn(shape, generator=generator).softmax(-1).sort(-1, descending=True).values
    is_mixed = torch.rand(labels.shape, generator=generator) < prob
    pure = _one_hot(torch.tensor(0), num_mixed)
    return classes, torch.where(is_mixed.unsqueeze(-1), shares, pure)


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """One-hot rows: ``[...]`` int64 to ``[..., num_classes]`` float32, without reading the values on the host."""
    return (labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)).float()
