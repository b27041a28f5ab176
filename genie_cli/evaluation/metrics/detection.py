"""Mean average precision of boxes as COCO measures it, by torchmetrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from genie_cli.errors import InputError
from genie_cli.evaluation.metrics.metric import Figures, Metric, described
from genie_cli.runtime.extras import is_installed, not_installed
from genie_cli.runtime.user_code import prints_on_stderr

_NEEDED = ("torchmetrics", "pycocotools")
_FIGURES = {"map": "map", "map50": "map_50", "map75": "map_75"}
"""Name -> that of torchmetrics."""


class Detection(Metric):
    """Mean average precision over the classes that have boxes, in percent; COCO's 100 boxes per image at most.

    ``map``: the mean over the IoU thresholds 0.50, 0.55, ..., 0.95. ``map50``, ``map75``: at one threshold.
    """

    name = "detection"
    takes = (
        "a list with a dict per image: boxes [k, 4] (x1, y1, x2, y2 in pixels of the input), scores [k] and labels [k]"
    )
    is_summed = False

    def __init__(self) -> None:
        """Count nothing yet."""
        from torchmetrics.detection import MeanAveragePrecision

        with prints_on_stderr():
            self._metric = MeanAveragePrecision(box_format="xyxy", iou_type="bbox")
        self._metric.warn_on_many_detections = False  # COCO's limit is meant

    def update(self, outputs: Any, targets: Any) -> None:
        """Take the boxes that were found, and those that are there: dicts of ``boxes`` and ``labels``."""
        found = _boxes(outputs, ("boxes", "scores", "labels"))
        if found is None:
            raise self.refused(outputs)
        wanted = _boxes(targets, ("boxes", "labels"))
        if wanted is None or len(wanted) != len(found):
            raise InputError(
                f"Metric detection takes a dict of boxes [k, 4] and labels [k] for each of the {len(found)} images, "
                f"and the data give {described(targets)}: use another --metric, or other data."
            )
        self._metric.update(found, wanted)

    def compute(self) -> Figures:
        """The figures; where no image has boxes they are not defined (NaN)."""
        with prints_on_stderr():
            computed = self._metric.compute()
        values = {name: float(computed[other]) for name, other in _FIGURES.items()}
        return {name: round(100 * value, 4) if value >= 0 else float("nan") for name, value in values.items()}


def check_installed() -> None:
    """Refuse the metric where the packages that it needs are missing.

    Raises:
        UsageError: the message says what to install.
    """
    for package in _NEEDED:
        if not is_installed(package):
            raise not_installed(package, "Metric detection")


def _boxes(value: Any, keys: tuple[str, ...]) -> list[dict[str, Tensor]] | None:
    """The boxes of each image with `keys` alone; None where they are something else."""
    if not isinstance(value, list | tuple):
        return None
    for image in value:
        if not isinstance(image, Mapping) or not all(isinstance(image.get(key), Tensor) for key in keys):
            return None
        boxes = image["boxes"]
        if boxes.ndim != 2 or boxes.shape[1] != 4 or any(image[key].shape != boxes.shape[:1] for key in keys[1:]):
            return None
    return [{key: image[key] for key in keys} for image in value]
