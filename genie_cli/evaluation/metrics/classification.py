"""Top-1, top-5 and per-class accuracy, and the agreement of two classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genie_cli.errors import InputError
from genie_cli.evaluation.metrics.decision import Decision
from genie_cli.evaluation.metrics.metric import Figures, Metric, described, share

_TAKES = "logits [B, classes]"


class Accuracy(Metric):
    """Shares of images, in percent.

    ``top1``: the label is the class that the network decides for. ``top5``: it is among the five most likely ones (or
    all, where there are fewer); left out for one output, which tells two classes apart. ``per_class``: top-1 of
    each class that has images.
    """

    name, takes = "classification", _TAKES
    compared = ("top1",)

    def __init__(self, decision: Decision | None, class_names: Sequence[str] | None) -> None:
        """Count nothing yet.

        Args:
            decision: the rule by which outputs become classes; None: that of logits, whose first batch shows the number
                of classes. Processes can share the images only where it is known.
            class_names: names for `per_class`; None: numbers.
        """
        self._names, self.is_summed = class_names, decision is not None
        self._begin(decision or Decision(2))
        self._is_begun = decision is not None

    def _begin(self, decision: Decision) -> None:
        self._decision = decision
        self._seen, self._right = torch.zeros(2, decision.num_classes, dtype=torch.int64)
        self._right_top5 = torch.zeros(1, dtype=torch.int64)
        self._is_begun = True

    def update(self, outputs: Any, targets: Any) -> None:
        """Take logits ``[B, num_outputs]`` and labels, integers ``[B]``."""
        if not self._is_begun:
            self._begin(decision_for(outputs, None))
        guesses = decided(self, outputs, self._decision)
        labels = self._labels(targets, len(outputs))
        top5 = outputs.topk(min(5, self._decision.num_outputs), dim=1).indices
        self._right_top5 += (top5 == labels[:, None]).any(1).sum()
        self._seen += self._count(labels)
        self._right += self._count(labels[guesses == labels])

    def compute(self) -> Figures:
        """The shares."""
        num_images = int(self._seen.sum())
        figures: Figures = {"top1": share(int(self._right.sum()), num_images)}
        if not self._decision.is_binary:
            figures["top5"] = share(int(self._right_top5), num_images)
        names = self._names or [str(label) for label in range(self._decision.num_classes)]
        figures["per_class"] = {
            name: share(int(self._right[label]), int(self._seen[label]))
            for label, name in enumerate(names[: self._decision.num_classes])
            if self._seen[label]
        }
        return figures

    def counts(self) -> list[Tensor]:
        """Images seen and classified right, per class."""
        return [self._seen, self._right, self._right_top5]

    def running(self) -> dict[str, float]:
        """Top-1 so far."""
        return {"top1": 100 * int(self._right.sum()) / max(1, int(self._seen.sum()))}

    def _count(self, labels: Tensor) -> Tensor:
        return torch.bincount(labels, minlength=self._decision.num_classes)

    def _labels(self, targets: Any, num_images: int) -> Tensor:
        labels = torch.as_tensor(targets) if isinstance(targets, Tensor | list) else torch.empty(0)
        if labels.ndim != 1 or len(labels) != num_images or labels.is_floating_point():
            raise InputError(
                f"Metric classification takes a label for each image, integers [{num_images}], and the data give "
                f"{described(targets)}: use another --metric, or other data."
            )
        lowest, highest = (int(bound) for bound in labels.aminmax())
        if lowest < 0 or highest >= self._decision.num_classes:
            raise InputError(
                f"The data have label {lowest if lowest < 0 else highest} and the network's labels are 0 to "
                f"{self._decision.num_classes - 1}: use data with the classes that the network was trained on."
            )
        return labels.long()


class Agreement(Metric):
    """Share of images, in percent, for which student and teacher decide for the same class."""

    name, takes = "classification", _TAKES

    def __init__(self, decision: Decision | None) -> None:
        """Count nothing yet; `decision` is that of `Accuracy`."""
        self._decision = decision
        self._counts = torch.zeros(2, dtype=torch.int64)

    def update(self, outputs: Any, targets: Any) -> None:
        """Take the student's logits, and the teacher's."""
        decision = decision_for(outputs, self._decision)
        alike = decided(self, outputs, decision) == decided(self, targets, decision)
        self._counts += torch.tensor([int(alike.sum()), len(alike)])

    def compute(self) -> Figures:
        """The share."""
        return {"agreement": share(*self._counts.tolist())}

    def counts(self) -> list[Tensor]:
        """Images that agree, and all images."""
        return [self._counts]


def decision_for(outputs: Any, known: Decision | None) -> Decision:
    """The rule that is known, or that of logits of this width."""
    width = outputs.shape[1] if isinstance(outputs, Tensor) and outputs.ndim == 2 else 2
    return known or Decision(width)


def decided(metric: Metric, outputs: Any, decision: Decision) -> Tensor:
    """The classes of logits, int64 ``[B]``.

    Raises:
        InputError: the outputs are none.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] != decision.num_outputs:
        raise metric.refused(outputs)
    return decision.classes(outputs)
