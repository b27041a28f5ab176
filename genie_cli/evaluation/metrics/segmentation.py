"""Mean intersection over union and pixel accuracy, and the agreement of two segmenters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genie_cli.errors import InputError
from genie_cli.evaluation.metrics.decision import Decision
from genie_cli.evaluation.metrics.metric import Figures, Metric, described, share

_TAKES = "logits [B, classes, height, width] or class maps, integers [B, height, width]"
_MOST_CLASSES = 1024


class Segmentation(Metric):
    """Figures over all pixels of all images, in percent, from one confusion matrix.

    ``miou``: the mean, over the classes that are met, of the pixels that are rightly of the class divided by those that
    are of it by label or by prediction. ``pixel_accuracy``: the share of pixels with the right class. ``per_class``:
    the intersection over union of each class that is met. Pixels labelled with the ignored class count nowhere, and it
    has no intersection over union; a prediction of it is wrong.

    Logits of another size than the class map are resized to it, bilinearly.
    """

    name, takes = "segmentation", _TAKES
    compared = ("miou", "pixel_accuracy")

    def __init__(self, ignore_class: int | None, threshold: float, any_proportions: bool) -> None:
        """Count nothing yet.

        Args:
            ignore_class: class of pixels that do not count; None: all count.
            threshold: of one output channel, above which a pixel is of class 1, see `Decision`.
            any_proportions: class maps may have other proportions than the outputs: the data have compared them with
                the images, and images are squeezed to the network's input.
        """
        self._ignored, self._threshold, self._any_proportions = ignore_class, threshold, any_proportions
        self._confusion = torch.zeros(_MOST_CLASSES, _MOST_CLASSES, dtype=torch.int64)

    def update(self, outputs: Any, targets: Any) -> None:
        """Take outputs, see `takes`, and class maps, integers ``[B, H, W]`` or a list of B maps ``[H, W]``."""
        check_outputs(self, outputs)
        maps = targets if isinstance(targets, Tensor | list | tuple) else ()
        if len(maps) != len(outputs) or not all(_is_map(each) for each in maps):
            raise InputError(
                f"Metric segmentation takes a class map for each image, integers [{len(outputs)}, height, width], and "
                f"the data give {described(targets)}: use another --metric, or other data."
            )
        is_logits = outputs.is_floating_point()
        num_classes = max(2, outputs.shape[1]) if is_logits else _MOST_CLASSES
        for output, class_map in zip(outputs, maps, strict=True):
            found = pixel_classes(self._resized(output, class_map) if is_logits else output, self._threshold)
            if found.shape != class_map.shape:
                raise self._other_size(output, class_map)
            labels = class_map.long()
            if self._ignored is not None:
                counted = labels != self._ignored
                found, labels = found[counted], labels[counted]
            self._add(found.flatten(), labels.flatten(), num_classes)

    def compute(self) -> Figures:
        """The figures."""
        confusion = self._confusion
        right, by_label, by_prediction = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        union = by_label + by_prediction - right
        met = [c for c in union.nonzero().flatten().tolist() if c != self._ignored]
        ious = [100 * int(right[c]) / int(union[c]) for c in met]
        return {
            "miou": round(sum(ious) / max(1, len(ious)), 4),
            "pixel_accuracy": share(int(right.sum()), int(confusion.sum())),
            "per_class": {str(c): round(iou, 4) for c, iou in zip(met, ious, strict=True)},
        }

    def counts(self) -> list[Tensor]:
        """The confusion matrix: rows are labels, columns predictions."""
        return [self._confusion]

    def running(self) -> dict[str, float]:
        """Pixel accuracy so far."""
        return {"pixel_accuracy": 100 * int(self._confusion.trace()) / max(1, int(self._confusion.sum()))}

    def _resized(self, output: Tensor, class_map: Tensor) -> Tensor:
        """Logits [K, h, w] of the class map's size."""
        if output.shape[1:] == class_map.shape:
            return output
        (height, width), (own_height, own_width) = class_map.shape, output.shape[1:]
        if not (
            self._any_proportions
            or abs(height * own_width / (width * own_height) - 1) <= 1 / min(own_height, own_width)
        ):
            raise self._other_size(output, class_map)
        return F.interpolate(output[None], (height, width), mode="bilinear", align_corners=False)[0]

    def _other_size(self, output: Tensor, class_map: Tensor) -> InputError:
        size, own = ("x".join(str(side) for side in shape) for shape in (class_map.shape, output.shape[-2:]))
        return InputError(
            f"A class map is {size} (height x width) and the network's output {own}: they must have the same size, or, "
            "for logits, the same proportions."
        )

    def _add(self, found: Tensor, labels: Tensor, num_classes: int) -> None:
        if not len(labels):
            return
        lowest, highest = (int(bound) for bound in labels.aminmax())
        if num_classes > _MOST_CLASSES or int(found.max()) >= _MOST_CLASSES:
            raise InputError(f"Metric segmentation counts up to {_MOST_CLASSES} classes, and the network has more.")
        if lowest < 0 or highest >= num_classes:
            label = lowest if lowest < 0 else highest
            raise InputError(
                f"A class map holds class {label} and the network's classes are 0 to {num_classes - 1}: if {label} "
                f"stands for pixels without a class, give --ignore-class {label}."
            )
        counts = torch.bincount(labels * num_classes + found, minlength=num_classes**2)
        self._confusion[:num_classes, :num_classes] += counts.view(num_classes, num_classes)


class PixelAgreement(Metric):
    """Share of pixels, in percent, for which student and teacher decide alike, at the outputs' own size."""

    name, takes = "segmentation", _TAKES

    def __init__(self, threshold: float) -> None:
        """Count nothing yet; `threshold` is that of `Segmentation`."""
        self._threshold = threshold
        self._counts = torch.zeros(2, dtype=torch.int64)

    def update(self, outputs: Any, targets: Any) -> None:
        """Take the student's outputs, and the teacher's."""
        for each in (outputs, targets):
            check_outputs(self, each)
        alike = [
            pixel_classes(one, self._threshold) == pixel_classes(other, self._threshold)
            for one, other in zip(outputs, targets, strict=True)
        ]
        self._counts += torch.tensor([sum(int(each.sum()) for each in alike), sum(each.numel() for each in alike)])

    def compute(self) -> Figures:
        """The share."""
        return {"agreement": share(*self._counts.tolist())}

    def counts(self) -> list[Tensor]:
        """Pixels that agree, and all pixels."""
        return [self._counts]


def check_outputs(metric: Metric, outputs: Any) -> None:
    """Refuse outputs that are neither logits nor class maps.

    Raises:
        InputError: they are not.
    """
    num_axes = outputs.ndim if isinstance(outputs, Tensor) else 0
    if num_axes != (4 if num_axes and outputs.is_floating_point() else 3):
        raise metric.refused(outputs)


def pixel_classes(output: Tensor, threshold: float) -> Tensor:
    """The class of each pixel of one image, int64 ``[H, W]``, from logits ``[K, H, W]`` or a class map."""
    if not output.is_floating_point():
        return output.long()
    return Decision(len(output), threshold).classes(output[None])[0]


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and not value.is_floating_point()
