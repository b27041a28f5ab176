"""Images of the user's own: a function that returns an iterable of (image, target)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genie_cli.config import InputSpec
from genie_cli.data.collate import collate_targets, first_targets
from genie_cli.data.samples import Samples, Task
from genie_cli.errors import InputError, UsageError
from genie_cli.runtime.user_code import UserCode, load_code

_PIXELS = "uint8 from 0 to 255, or floats from 0 to 1, before the network's mean and std are applied"
_TOLERANCE = 1e-3
"""Distance that a float may have from 0..1, as interpolation leaves it."""
_WHERE = "while it gave an image"


class FactorySamples(Samples):
    """The items of a user's iterable, read one by one: what is not needed is not read.

    An item is ``(image, target)`` or an image alone. Images ``[C, H, W]`` of the network's size are put together in
    batches here. Images ``[B, C, H, W]`` are batches of the user's own, with their targets collated.

    A sequence (``__len__`` and ``__getitem__``, as a `torch.utils.data.Dataset`) is read by its indices, all else from
    its beginning on.
    """

    is_drawn = False

    def __init__(self, code: UserCode, spec: InputSpec, num_images: int | None) -> None:
        """Call the factory, and look at its first item.

        Args:
            code: the factory.
            spec: the network's input.
            num_images: number of images to read at most; None: all.

        Raises:
            InputError: the factory fails, or gives something else.
        """
        self._code, self._spec, self._most = code, spec, num_images
        self._first: list[tuple[Tensor, Any]] = []
        self.code_sha256 = code.sha256
        items = code()
        self._items, self._is_sequence = items, _is_sequence(items)
        if isinstance(items, Mapping) or not (self._is_sequence or isinstance(items, Iterable)):
            raise InputError(
                f"Data '{code.spec}' must give an iterable of (image, target), it gave {type(items).__name__}."
            )
        with code.running(_WHERE):
            self._length = len(items) if hasattr(items, "__len__") else None
        self._iterator: Iterator[Any] | None = None
        self._given = 0
        if not self._is_sequence:
            with code.running(_WHERE):
                self._iterator = iter(items)
        first = next(self._numbered(range(1)) if self._is_sequence else self._following(), None)
        if first is None:
            raise InputError(f"Data '{code.spec}' gives no images.")
        image, target = first
        self._is_batched = image.ndim == len(self._shape) + 1
        self._first = [first]
        self.task = _task_of(first_targets(target, 1, len(image)) if self._is_batched else target, self._is_batched)
        self.has_targets = target is not None

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self._spec.shape

    @property
    def num_images(self) -> int | None:
        """Number of images; None where the iterable does not know its length, or gives batches."""
        if self._length is None or self._is_batched:
            return None
        return self._length if self._most is None else min(self._length, self._most)

    def batches(self, batch_size: int, share: range | None = None) -> Iterator[tuple[Tensor, Any]]:
        """Go once through the images, see `Samples.batches`; batches of the user's own keep their size.

        Without a share, more images than there are may not have been asked for.

        Raises:
            UsageError: there are fewer images than were asked for.
        """
        if share is not None and self._is_sequence and not self._is_batched:
            assert self.num_images is not None
            for index in share:
                rows = range(index * batch_size, min((index + 1) * batch_size, self.num_images))
                yield self._joined(list(self._numbered(rows)))
            return
        done = 0
        for index, (images, targets) in enumerate(self._all_batches(batch_size)):
            left = None if self._most is None else self._most - done
            if left is not None and left < len(images):
                images, targets = images[:left], first_targets(targets, left, len(images))
            done += len(images)
            if share is None or index in share:
                yield images, targets
            if done == self._most:
                return
        if self._most is not None and done < self._most:
            raise UsageError(f"--num-images {self._most} is more than the {done} images of '{self._code.spec}'.")

    def _all_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Any]]:
        items = self._pass()
        if self._is_batched:
            for images, targets in items:
                yield self._normalized(images), targets
            return
        while taken := list(itertools.islice(items, batch_size)):
            yield self._joined(taken)

    def calibration_pixels(self, num_images: int | None, seed: int) -> Tensor:
        """The first images, rounded to 8 bits; see `Samples.calibration_pixels`."""
        taken: list[Tensor] = []
        done = 0
        for image, _ in self._pass():
            pixels = image if image.dtype == torch.uint8 else (image.float() * 255).round().clamp(0, 255).byte()
            taken.append(pixels if self._is_batched else pixels[None])
            done += len(taken[-1])
            if num_images is not None and done >= num_images:
                break
        if num_images is not None and done < num_images:
            raise UsageError(f"--num-images {num_images} is more than the {done} images of '{self._code.spec}'.")
        return torch.cat(taken)[:num_images].contiguous()

    def _pass(self) -> Iterator[tuple[Tensor, Any]]:
        """All items from the first one on."""
        if self._is_sequence:
            assert self._length is not None
            yield from self._numbered(range(self._length))
            return
        if self._first:
            yield self._first.pop()
        else:  # an earlier pass has begun, and perhaps used it up
            items = self._code()
            with self._code.running(_WHERE):
                self._iterator = iter(items)
            self._given = 0
        yield from self._following()

    def _following(self) -> Iterator[tuple[Tensor, Any]]:
        assert self._iterator is not None
        while True:
            with self._code.running(_WHERE):
                try:
                    item = next(self._iterator)
                except StopIteration:
                    return
            self._given += 1
            yield self._split(item, self._given)

    def _numbered(self, rows: Sequence[int]) -> Iterator[tuple[Tensor, Any]]:
        for row in rows:
            if row >= (self._length or 0):
                return
            with self._code.running(_WHERE):
                item = self._items[row]
            yield self._split(item, row + 1)

    def _split(self, item: Any, number: int) -> tuple[Tensor, Any]:
        """Image and target of an item, checked; both as they are.

        Raises:
            InputError: it is no image of the network's shape, or has values that pixels do not have.
        """
        what = f"Item {number} of data '{self._code.spec}'"
        image, target = (*item, None)[:2] if isinstance(item, tuple | list) and 1 <= len(item) <= 2 else (item, None)
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(np.ascontiguousarray(image))
        if not isinstance(image, Tensor):
            raise InputError(
                f"{what} must be (image, target), the image a tensor {list(self._shape)}, it is {type(image).__name__}."
            )
        if tuple(image.shape[-3:]) != self._shape or image.ndim not in (3, 4):
            raise InputError(
                f"{what} has an image of {list(image.shape)}, and the network takes {list(self._shape)} (channels, "
                "height, width): resize or permute it in the factory, with its target."
            )
        if image.dtype != torch.uint8:
            low, high = (float(bound) for bound in image.aminmax()) if image.is_floating_point() else (0.0, 2.0)
            if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
                values = f"values from {low:.4g} to {high:.4g}" if image.is_floating_point() else f"type {image.dtype}"
                raise InputError(f"{what} has an image with {values}: pixels are {_PIXELS}.")
        return image, target

    def _joined(self, items: Sequence[tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
        unit = torch.stack([self._unit(image) for image, _ in items])
        return self._normalized(unit), collate_targets([target for _, target in items])

    def _normalized(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (self._spec.mean, self._spec.std))
        return (self._unit(images) - mean) / std

    def _unit(self, images: Tensor) -> Tensor:
        return images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images.to(torch.float32)


def open_factory(text: str, spec: InputSpec, num_images: int | None = None) -> FactorySamples:
    """The images of the factory ``FILE.py:FACTORY``.

    Args:
        text: names it; its file is run.
        spec: the network's input.
        num_images: number of images to read at most; None: all.

    Raises:
        InputError: the file does not exist, the factory fails, or gives something else than images.
        UsageError: the file has no such factory.
    """
    return FactorySamples(load_code(text, "Data"), spec, num_images)


def _is_sequence(items: Any) -> bool:
    return hasattr(items, "__getitem__") and hasattr(items, "__len__") and not isinstance(items, str | bytes)


def _task_of(target: Any, is_batched: bool) -> Task | None:
    """The kind that a target has by its looks; None: there is none, or it is of the user's own kind."""
    if is_batched and isinstance(target, list | tuple) and target:
        return _task_of(target[0], is_batched=False)
    if isinstance(target, bool | float):
        return None
    if isinstance(target, int | np.integer):
        return "classification"
    if isinstance(target, Mapping) and {"boxes", "labels"} <= set(target):
        return "detection"
    if isinstance(target, Tensor | np.ndarray):
        is_integer = not torch.as_tensor(target).is_floating_point()
        num_axes = target.ndim - int(is_batched)
        return {0: "classification", 2: "segmentation"}.get(num_axes) if is_integer else None  # type: ignore[return-value]
    return None
