"""Scikit-learn's bundled digits: 1797 handwritten digits that need no download."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from genie_cli.config import InputSpec
from genie_cli.data.labeled import TensorImages, check_fits
from genie_cli.runtime.extras import required

SIZE = 16
"""Side of the images in pixels; scikit-learn's are 8x8."""
NUM_CLASSES = 10

_MAX_VALUE = 16
"""Brightest value of scikit-learn's images."""
_TEST_PLACES = (2, 5, 8)
"""Places of the test images among ten consecutive images of a class: 30 %."""


def split(train: bool) -> tuple[Tensor, Tensor]:
    """The training or the test digits; the split is fixed and takes three tenths of each class for the test.

    Args:
        train: True for the training split (1260 images), False for the test split (537).

    Returns:
        images uint8 [n, 1, 16, 16], bilinearly enlarged and scaled to 0..255; labels int64 [n].

    Raises:
        UsageError: scikit-learn is not installed.
    """
    bundled = required("sklearn.datasets", "Data 'digits'").load_digits()
    values = torch.from_numpy(bundled.images).to(torch.float32).unsqueeze(1)
    labels = torch.from_numpy(bundled.target).to(torch.int64)
    chosen = _is_test(labels) != train
    enlarged = F.interpolate(values[chosen], size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return (enlarged * (255 / _MAX_VALUE)).round().to(torch.uint8), labels[chosen]


def open_digits(spec: InputSpec, num_images: int | None = None, train: bool = False) -> TensorImages:
    """The test split for one network, or the training split.

    Args:
        spec: the network's input.
        num_images: number of images to keep, from the first on; None: all.
        train: open the training images.

    Raises:
        UsageError: scikit-learn, which bundles the images, is not installed.
        InputError: the network takes another shape.
    """
    check_fits("digits", (1, SIZE, SIZE), spec)
    images, labels = split(train)
    names = [str(digit) for digit in range(NUM_CLASSES)]
    return TensorImages(images[:num_images], labels[:num_images], spec, NUM_CLASSES, names)


def _is_test(labels: Tensor) -> Tensor:
    """True for each test image, bool [n]: the image's place among those of its class decides."""
    one_hot = F.one_hot(labels, NUM_CLASSES)
    place = one_hot.cumsum(0).gather(1, labels.unsqueeze(1)).squeeze(1) - 1
    return torch.isin(place % 10, torch.tensor(_TEST_PLACES))
