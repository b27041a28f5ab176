"""The distance of a network's outputs from its teacher's, with which sensitivities are told; no labels enter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genie_cli.models.teacher import Teacher


@dataclass(frozen=True)
class OutputDistance:
    """KL divergence of class probabilities, or squared errors relative to the outputs' energies.

    Attributes:
        places: of the outputs that count.
        energies: mean squared norm per image of each, ``[len(places)]``; None: KL divergence of the one.
    """

    places: tuple[int, ...]
    energies: Tensor | None

    def __call__(self, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
        """The distance summed over the images ``[B, ...]`` of a batch."""
        total = 0.0
        for number, place in enumerate(self.places):
            own, other = found[place].double(), wanted[place].double()
            if self.energies is None:
                log_probs = other.log_softmax(1)
                total += float((log_probs.exp() * (log_probs - own.log_softmax(1))).sum())
            else:
                total += float((own - other).square().sum() / self.energies[number])
        return total

    def half_gradients(self, outputs: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        """A random direction v per image and output, with E[v v^T] the Hessian of the distance at the teacher.

        Of KL with probabilities p the Hessian is ``diag(p) - p p^T``; ``v = sqrt(p) * e - p (sqrt(p) . e)`` has it as
        its second moment where e is +1 or -1 at random. Of the relative squared error it is ``2 / energy``.

        Returns:
            As many tensors as there are `places`, in the shapes of these outputs.
        """
        directions = []
        for number, place in enumerate(self.places):
            output = outputs[place].detach()
            signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
            if self.energies is None:
                probs = output.softmax(1)
                root = probs.sqrt()
                directions.append(root * signs - probs * (root * signs).sum(1, keepdim=True))
            else:
                directions.append(signs * float((2 / self.energies[number]).sqrt()))
        return directions


def output_distance(teacher: Teacher, energies: Tensor, is_float: Sequence[bool]) -> OutputDistance:
    """The distance that suits a network: KL divergence where it has class scores.

    Args:
        teacher: the network.
        energies: mean squared norm per image of each of its outputs.
        is_float: output by output, whether it holds floats.
    """
    if teacher.logits is not None and (teacher.num_classes or 0) > 1:
        return OutputDistance((teacher.logits.place,), None)
    places = tuple(place for place, each in enumerate(is_float) if each)
    tiny = torch.finfo(torch.float32).tiny
    return OutputDistance(places, energies[list(places)].clamp(min=tiny))
