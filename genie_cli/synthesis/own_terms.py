"""Terms of the loss of a synthesis that users register."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genie_cli.config import SynthesizeConfig
from genie_cli.errors import InputError, look_up
from genie_cli.models.teacher import Teacher
from genie_cli.runtime.registered import registered
from genie_cli.runtime.user_code import UserCode


@dataclass(frozen=True)
class ImageBatch:
    """The batch that a term of the loss sees.

    Attributes:
        pixels: ``[B, C, H, W]``, 0 black to 1 white, before mean and std are applied; they may lie outside.
        labels: the class that each image should have, ``[B]`` int64.
        logits: the network's class scores ``[B, K]``; None unless the term says that it needs them.
    """

    pixels: Tensor
    labels: Tensor
    logits: Tensor | None


@dataclass(frozen=True)
class OwnTerm:
    """A term of the user's.

    Attributes:
        function: from a batch to a scalar, which is to become small.
        needs_logits: it reads the class scores, so that the whole network has to run.
        code: where it comes from.
    """

    function: Callable[[ImageBatch], Tensor]
    needs_logits: bool
    code: UserCode

    def __call__(self, batch: ImageBatch) -> Tensor:
        """The term's value.

        Raises:
            InputError: it fails, or gives no scalar tensor.
        """
        value: Any = self.code(batch)
        if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
            told = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"Term '{self.code.name}' must return a scalar tensor of floats, it returned {told}.")
        return value


def chosen_terms(config: SynthesizeConfig) -> list[tuple[float, OwnTerm]]:
    """Weight and term of those that the configuration names.

    Raises:
        UsageError: unknown name.
    """
    found = {name: each.value for name, each in registered("synthesis term").items()}
    told = f": those of the plug-ins are {', '.join(found)}" if found else ": none is registered; --plugin names a file"
    return [
        (weight, look_up(found, "synthesis term", name, told))
        for name, weight in (config.terms or {}).items()
        if weight
    ]


def check_own_terms(teacher: Teacher, config: SynthesizeConfig, device: torch.device) -> None:
    """Find out, before the work, whether the terms give what they have to, on two images of noise.

    Raises:
        UsageError: unknown name.
        InputError: a term fails, is no finite scalar, or does not depend on the images.
    """
    num_classes = teacher.num_classes or 1
    for _, term in chosen_terms(config):
        draws = torch.Generator().manual_seed(0)
        pixels = torch.rand(2, *teacher.input.shape, generator=draws).to(device).requires_grad_()
        # scores that depend on the images, so that a term of scores alone has a gradient too
        scores = torch.randn(2, num_classes, generator=draws).to(device) * pixels.mean((1, 2, 3)).view(2, 1)
        labels = torch.arange(2, device=device) % num_classes
        value = term(ImageBatch(pixels, labels, scores if term.needs_logits else None))
        if not value.requires_grad:
            raise InputError(f"Term '{term.code.name}' does not depend on the images: it has no gradient.")
        (gradient,) = torch.autograd.grad(value, pixels, allow_unused=True)
        if gradient is None:
            raise InputError(f"Term '{term.code.name}' does not depend on the images: it has no gradient.")
        if not value.isfinite() or not gradient.isfinite().all():
            what = "is" if not value.isfinite() else "has a gradient of"
            raise InputError(f"Term '{term.code.name}' {what} NaN or infinity on images of noise from 0 to 1.")
