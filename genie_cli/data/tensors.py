"""Images in one safetensors file, with labels or without."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from genie_cli.config import InputSpec
from genie_cli.data.labeled import TensorImages, check_fits
from genie_cli.errors import InputError

_LABEL_DTYPES = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32)
_PIXELS = "it must hold 'images', uint8 [n, channels, height, width]"
_LAYOUT = f"{_PIXELS}, and, for accuracy, 'labels', integers [n]"


def open_tensors(path: Path, spec: InputSpec, num_images: int | None = None, labelled: bool = True) -> TensorImages:
    """The images of a ``.safetensors`` file for one network.

    Args:
        path: holds ``images`` uint8 [n, C, H, W] and ``labels`` integer [n].
        spec: the network's input.
        num_images: number of images to keep, from the first on; None: all.
        labelled: read labels, where the file holds them. False: they are not read, and the images have no targets.

    Raises:
        InputError: missing or truncated file, no images, wrong types or shapes, negative labels.
    """
    images, found_labels = _read(path, labelled)
    layout = _PIXELS if found_labels is None else _LAYOUT
    labels = torch.zeros(images.shape[:1], dtype=torch.int64) if found_labels is None else found_labels
    if images.dtype != torch.uint8:
        raise InputError(f"'images' of {path} are {_name(images)}, and pixels must be uint8 (0..255): {layout}.")
    if labels.dtype not in _LABEL_DTYPES:
        raise InputError(f"'labels' of {path} are {_name(labels)}: {_LAYOUT}.")
    if images.ndim != 4 or labels.ndim != 1 or len(images) != len(labels) or len(images) == 0:
        found = f"images {list(images.shape)}" + ("" if found_labels is None else f" and labels {list(labels.shape)}")
        raise InputError(f"{path} holds {found}: {layout}, n at least 1.")
    _, channels, height, width = images.shape
    check_fits(str(path), (channels, height, width), spec)
    labels = labels.to(torch.int64)
    if int(labels.min()) < 0:
        raise InputError(f"'labels' of {path} go down to {int(labels.min())}: labels count from 0.")
    samples = TensorImages(images[:num_images], labels[:num_images], spec)
    if found_labels is None:
        samples.task, samples.has_targets = None, False
    return samples


def _read(path: Path, labelled: bool) -> tuple[Tensor, Tensor | None]:
    """Images, and labels where they are wanted and there."""
    if not path.is_file():
        raise InputError(f"Data file {path} does not exist: check the path given to --data or --images.")
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            if "images" in keys:
                has_labels = labelled and "labels" in keys
                return file.get_tensor("images"), file.get_tensor("labels") if has_labels else None
    except (SafetensorError, OSError) as error:
        raise InputError(f"Data file {path} cannot be read, it may be truncated: {error}.") from None
    raise InputError(f"{path} holds {', '.join(sorted(keys)[:5]) or 'no tensors'}: {_LAYOUT}.")


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
