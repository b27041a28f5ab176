"""Images with a class each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from genie_cli.config import InputSpec
from genie_cli.data.normalize import normalize_pixels
from genie_cli.data.samples import CountedSamples, Task
from genie_cli.errors import InputError


class LabeledImages(CountedSamples):
    """Images with a class each; their targets are the labels, int64 [B].

    Attributes:
        labels: int64 [n], each >= 0, in the order of the images.
        num_classes: number of classes, None where the source does not know it.
    """

    task: Task | None = "classification"

    def __init__(self, labels: Tensor, num_classes: int | None, class_names: list[str] | None) -> None:
        """Keep what every source knows."""
        self.labels = labels
        self.num_classes = num_classes
        self.class_names = class_names

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.labels)


class TensorImages(LabeledImages):
    """Images that lie in memory as pixels; each batch is normalised when it is asked for."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        spec: InputSpec,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        """Keep `images` and `labels` as they are.

        Args:
            images: uint8 [n, C, H, W], pixels 0..255.
            labels: int64 [n].
            spec: mean and std of the network.
            num_classes: number of classes, where known.
            class_names: one name per class, where known.
        """
        super().__init__(labels, num_classes, class_names)
        self._images = images
        self._spec = spec

    def pixels(self, rows: Sequence[int]) -> Tensor:
        """Some images, see `CountedSamples.pixels`."""
        return self._images[torch.tensor(rows, dtype=torch.int64)]

    def batches(self, batch_size: int, share: range | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Go once through the images, see `Samples.batches`."""
        for rows in self.rows(batch_size, share):
            batch = slice(rows.start, rows.stop)
            targets = self.labels[batch] if self.has_targets else None
            yield normalize_pixels(self._images[batch], self._spec), targets


def check_fits(source: str, image_shape: tuple[int, int, int], spec: InputSpec) -> None:
    """Refuse images of another shape than the network's input.

    Args:
        source: names the images in the message.
        image_shape: (channels, height, width).
        spec: the network's input.

    Raises:
        InputError: the shapes differ; the message gives both.
    """
    expected = spec.shape
    if image_shape != expected:
        raise InputError(
            f"{source} holds images of {list(image_shape)} (channels, height, width), and the network takes "
            f"{list(expected)}: use data of that shape, or a network for these images."
        )


def check_classes(data: LabeledImages, num_classes: int) -> None:
    """Refuse labels that cannot be those of the network.

    Args:
        data: the images to evaluate on.
        num_classes: width of the network's output; one output tells the classes 0 and 1 apart.

    Raises:
        InputError: another number of classes, or a label beyond the network's last class.
    """
    is_binary = num_classes == 1
    highest = int(data.labels.max())
    if is_binary and (highest > 1 or (data.num_classes or 2) > 2):
        raise InputError(
            f"The network has one output, which tells the classes 0 and 1 apart, and the data have "
            f"{f'label {highest}' if highest > 1 else f'{data.num_classes} classes'}: use data with the labels 0 and 1."
        )
    if is_binary:
        return
    if data.num_classes is not None and data.num_classes != num_classes:
        raise InputError(
            f"The data have {data.num_classes} classes and the network has {num_classes}: "
            "use data with the classes that the network was trained on."
        )
    if highest >= num_classes:
        raise InputError(
            f"The data have label {highest} and the network's {num_classes} classes end at label {num_classes - 1}: "
            "use data with the classes that the network was trained on."
        )
