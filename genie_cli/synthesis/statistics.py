"""The batch-norm statistics loss (paper Eq. 5), one pass each way over each normalised tensor.

For a site with running mean mu, deviation sigma = sqrt(var + 1e-6), C channels and N values per
channel, with the batch's mean m and unbiased deviation s:

    loss = ( sum_c (m - mu)^2 + sum_c (s - sigma)^2 ) / C
    d loss / dx = 2/C * [ (m - mu) / N + (s - sigma) (x - m) / ((N - 1) s) ]

The gradient is affine in x per channel, and so is the batch norm itself, so the backward pass is
two per-channel affine maps and needs no more memory than x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genie_cli.models.graph.batch_norm import BatchNormSite

VARIANCE_EPS = 1e-6
"""Added to the running variance in the target; the layers' own eps is not used (authors' constant)."""
_TINY = 1e-12


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance ``[C]`` (float32) of ``x [B, C, ...]`` over all but the channels."""
    # the training kernel of batch norm: torch.var_mean is ten times slower on a CPU, and on a GPU needs a float32 copy
    on_cpu = x.device.type == "cpu"  # whose kernel wants to write running statistics
    running = [torch.zeros(x.shape[1]) if on_cpu else None for _ in range(2)]
    mean, var = torch.ops.aten.batch_norm_update_stats(x, *running, 0.0)
    return mean.float(), var.float()


def _affine(x: Tensor, multiplier: Tensor, offset: Tensor) -> Tensor:
    """``multiplier * x + offset`` per channel, in the dtype of x, computed by batch norm's fused kernel."""
    return torch.batch_norm(
        x, multiplier, offset, torch.zeros_like(offset), torch.ones_like(offset), False, 0.0, 0.0, False
    )


class _SiteFunction(torch.autograd.Function):
    """``(y, loss)`` of a batch norm in evaluation mode and its statistics loss."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, multiplier: Tensor, offset: Tensor, target_mean: Tensor, target_std: Tensor, needs_y: bool
    ) -> tuple[Tensor, Tensor]:
        mean, var = channel_statistics(x)
        channels, count = len(mean), x.numel() // len(mean)
        std = (var * (count / max(count - 1, 1))).clamp(min=_TINY).sqrt()
        mean_gap, std_gap = mean - target_mean, std - target_std
        slope = 2 / channels * std_gap / (max(count - 1, 1) * std)
        shift = 2 / channels * mean_gap / count - slope * mean
        ctx.save_for_backward(x, slope, shift, multiplier)
        loss = (mean_gap.square().sum() + std_gap.square().sum()) / channels
        y = _affine(x, multiplier, offset) if needs_y else x.new_empty(0)
        return y, loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, slope, shift, multiplier = ctx.saved_tensors
        grad_y, grad_loss = grads
        grad = _affine(x, slope * grad_loss, shift * grad_loss)
        if grad_y is not None and grad_y.numel():
            grad += _affine(grad_y, multiplier, torch.zeros_like(multiplier))
        return grad, None, None, None, None, None


class StatisticsSite(nn.Module):
    """A batch norm that also measures the distance of its input from its running statistics."""

    multiplier: Tensor
    offset: Tensor
    target_mean: Tensor
    target_std: Tensor

    def __init__(self, site: BatchNormSite, needs_y: bool) -> None:
        """Copy the statistics of `site`; `needs_y` is True if another node reads the normalised value."""
        super().__init__()
        multiplier, offset = site.affine()
        self.needs_y = needs_y
        self.register_buffer("multiplier", multiplier.float())
        self.register_buffer("offset", offset.float())
        self.register_buffer("target_mean", site.mean.float())
        self.register_buffer("target_std", (site.var.float() + VARIANCE_EPS).sqrt())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x [B, C, ...]`` to the normalised value and the loss (float32 scalar)."""
        result: tuple[Tensor, Tensor] = _SiteFunction.apply(
            x, self.multiplier, self.offset, self.target_mean, self.target_std, self.needs_y
        )
        return result
