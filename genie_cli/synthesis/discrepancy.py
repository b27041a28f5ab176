"""The adversarial term: images on which a quantized network differs from its teacher (ZAQ)."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from genie_cli.models.graph.placement import move
from genie_cli.models.graph.pooling import with_repeatable_pooling
from genie_cli.student.modules import ActivationQuantizer


def discrepancy_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Minus the mean absolute difference of two networks' logits ``[B, K]``, in float32.

    ZAQ (Liu et al., CVPR 2021): the generator minimises it, which makes the difference large, while the
    student's training makes the difference small. The gradients of both logits reach the images.
    """
    return -(teacher_logits.float() - student_logits.float()).abs().mean()


class Student:
    """A quantized network whose class scores have a gradient at the images.

    Its rounding, whose own gradient is zero, passes gradients straight through inside the grid.
    """

    def __init__(self, network: fx.GraphModule, device: torch.device) -> None:
        """Take a network from images to class scores, such as `Logits.of` makes of `load_student`'s, in place."""
        for name, module in list(network.named_modules()):
            if isinstance(module, ActivationQuantizer):
                network.set_submodule(name, _StraightThrough(module))
        self._network = move(with_repeatable_pooling(network), device)

    def __call__(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]``, normalised, to logits ``[B, K]``, float32."""
        logits: Tensor = self._network(images)
        return logits.float()


class _StraightThrough(nn.Module):
    """An activation quantizer whose gradient is that of its clipping."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        step_size = self.quantizer.step_size.to(x.dtype)
        format = self.quantizer.format
        clipped = torch.minimum(torch.maximum(x, format.quant_min * step_size), format.quant_max * step_size)
        rounded: Tensor = self.quantizer(x)
        return clipped + (rounded - clipped).detach()
