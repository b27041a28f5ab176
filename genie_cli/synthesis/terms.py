"""The optional terms of a batch's loss: classes, image priors, and a quantized student's difference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from genie_cli.config import InputSpec, SynthesizeConfig
from genie_cli.data.pixel_prior import PixelPrior
from genie_cli.errors import UsageError
from genie_cli.models.logits import why_no_logits
from genie_cli.models.teacher import Teacher
from genie_cli.runtime.determinism import make_generator
from genie_cli.synthesis.class_terms import (
    class_targets,
    classification_loss,
    draw_confidences,
    marginal_distance_loss,
    soft_inception_loss,
)
from genie_cli.synthesis.discrepancy import Student, discrepancy_loss
from genie_cli.synthesis.image_priors import SMALLEST_SMOOTHED, draw_crops, local_crop, smoothness_loss
from genie_cli.synthesis.own_terms import ImageBatch, check_own_terms, chosen_terms

_OF_CLASSES = ("class_weight", "soft_class_weight", "margin_weight")
"""Weights of terms that compare classes."""
_OF_LOGITS = (*_OF_CLASSES, "discrepancy_weight")
"""Weights of terms that read the class scores."""
_WEIGHTS = (*_OF_LOGITS, "statistics_weight", "image_loss_weight", "smoothness_weight")
"""Weights of all terms but those of the user's own."""


def needs_logits(config: SynthesizeConfig) -> bool:
    """True if some term reads the teacher's class scores, so that the whole network has to run."""
    own = any(term.needs_logits for _, term in chosen_terms(config))
    return own or any(getattr(config, weight) for weight in _OF_LOGITS)


def check_terms(teacher: Teacher, config: SynthesizeConfig, device: torch.device) -> None:
    """Refuse terms that a network's outputs, or its images, cannot have.

    Args:
        teacher: the network.
        config: the recipe.
        device: where terms of the user's own are tried.

    Raises:
        UsageError: no term at all; class scores are needed and the network has none, or one; images too small for the
            smoothness; or an unknown term.
        InputError: a term of the user's own that fails, or is no finite scalar.
    """
    check_own_terms(teacher, config, device)
    if not any(getattr(config, weight) for weight in _WEIGHTS) and not chosen_terms(config):
        raise UsageError("All terms of the loss have weight 0: give one, such as statistics_weight, a larger weight.")
    needed = [f"{weight} = {getattr(config, weight):g}" for weight in _OF_LOGITS if getattr(config, weight)]
    classes = [f"{weight} = {getattr(config, weight):g}" for weight in _OF_CLASSES if getattr(config, weight)]
    needed += [f"the term '{term.code.name}'" for _, term in chosen_terms(config) if term.needs_logits]
    if config.conditioning != "none":
        conditioning = f"conditioning = '{config.conditioning}'"
        needed, classes = [*needed, conditioning], [*classes, conditioning]
    if needed and teacher.logits is None:
        raise UsageError(
            f"Preset '{config.preset}' with {', '.join(needed)} needs class scores, and "
            f"{why_no_logits(teacher.outputs)}. Presets genie, zeroq, swing, gba and latent need none."
        )
    if classes and teacher.num_classes == 1:
        raise UsageError(
            f"Preset '{config.preset}' with {', '.join(classes)} compares classes, and this network has one output: "
            "use a preset without such terms, such as genie."
        )
    if config.smoothness_weight and min(teacher.input.height, teacher.input.width) < SMALLEST_SMOOTHED:
        raise UsageError(
            f"smoothness_weight = {config.smoothness_weight:g} compares neighbouring pixels, and images of "
            f"{teacher.input.height}x{teacher.input.width} have too few: a side is at least {SMALLEST_SMOOTHED}."
        )


class BatchTerms:
    """The terms of one batch, with the random numbers that are drawn for them before its steps.

    Attributes:
        labels: the class that each image should have, ``[B]`` int64.
    """

    def __init__(
        self,
        spec: InputSpec,
        num_classes: int,
        index: int,
        size: int,
        config: SynthesizeConfig,
        device: torch.device,
        student: Student | None,
    ) -> None:
        """Draw labels, confidences and crops of batch `index` under its own seeds."""

        def draws(purpose: str) -> torch.Generator:
            return make_generator(torch.device("cpu"), config.seed, purpose, index)

        self._config, self._student = config, student
        self._own = chosen_terms(config)
        self._place = PixelPrior.of_input(spec).placement(device)
        pixels = PixelPrior.of_pixels(spec.num_channels)
        self._pixel_std = torch.tensor(pixels.std).view(-1, 1, 1).to(device)
        self._pixel_mean = torch.tensor(pixels.mean).view(-1, 1, 1).to(device)
        self.labels = class_targets(size, num_classes, draws("classes")).to(device)
        self._one_hot = F.one_hot(self.labels, num_classes).float()
        self._confidences = draw_confidences(size, config.soft_class_lowest, draws("confidences")).to(device)
        self._crops: Tensor | None = None
        if config.crop_prob:
            steps = draw_crops(config.num_steps, size, config.crop_lowest, config.crop_prob, draws("crops"))
            self._crops = steps.to(device)

    def seen(self, images: Tensor, step_index: Tensor) -> Tensor:
        """The crops of ``images [B, C, H, W]`` that the teacher sees in the step of the index ``[1]``."""
        if self._crops is None:
            return images
        return local_crop(images, self._crops.index_select(0, step_index).squeeze(0))

    def loss(
        self, images: Tensor, seen: Tensor, targets: Tensor | None, logits: Tensor | None, features: Tensor | None
    ) -> Tensor | None:
        """The weighted sum of the terms that are switched on; None if all are off.

        Args:
            images: ``[B, C, H, W]``, standardized.
            seen: their crops that the teacher saw.
            targets: soft classes ``[B, K]`` of the generator's input, where it has them.
            logits: the teacher's ``[B, K]``; None where no term needs them.
            features: the last layer's input ``[B, D]``.
        """
        config = self._config
        terms = []
        if config.smoothness_weight:
            # on pixels in 0..1, as in the authors' code: on standardized images its weight would be 1 / std^2 as large
            terms.append(config.smoothness_weight * smoothness_loss(images * self._pixel_std))
        if logits is not None and features is not None:
            if config.class_weight:
                wanted = self._one_hot if targets is None else targets
                terms.append(config.class_weight * classification_loss(logits, wanted))
            if config.soft_class_weight:
                terms.append(config.soft_class_weight * soft_inception_loss(logits, self.labels, self._confidences))
            if config.margin_weight:
                margin = marginal_distance_loss(features, self.labels, config.margin_low, config.margin_high)
                terms.append(config.margin_weight * margin)
            if self._student is not None:
                terms.append(config.discrepancy_weight * discrepancy_loss(logits, self._student(self._place(seen))))
        for weight, term in self._own:
            pixels = images * self._pixel_std + self._pixel_mean
            own = term(ImageBatch(pixels, self.labels, logits if term.needs_logits else None))
            terms.append(weight * own.float())
        return torch.stack(terms).sum() if terms else None

    def own_names(self) -> list[str]:
        """Files and names of the user's own terms."""
        return [term.code.name for _, term in self._own]
