"""CIFAR-10's test images in the files that torchvision downloads."""

from __future__ import annotations

from pathlib import Path

import torch

from genie_cli.config import InputSpec
from genie_cli.data.labeled import TensorImages, check_fits
from genie_cli.errors import InputError

_SHAPE = (3, 32, 32)


def open_cifar10(folder: Path, spec: InputSpec, num_images: int | None = None, train: bool = False) -> TensorImages:
    """The 10000 test images for one network, or the 50000 training images.

    The files are pickles: torchvision compares their MD5 sums with the published ones before it
    reads them, so that nothing but CIFAR-10 itself is unpickled. Nothing is downloaded.

    Args:
        folder: holds ``cifar-10-batches-py``.
        spec: the network's input.
        num_images: number of images to keep, from the first on; None: all.
        train: open the training images.

    Raises:
        InputError: files missing or damaged, or the network takes another shape.
    """
    from torchvision.datasets import CIFAR10

    check_fits("CIFAR-10", _SHAPE, spec)
    try:
        dataset = CIFAR10(str(folder), train=train, download=False)
    except (RuntimeError, OSError):
        raise InputError(f"CIFAR-10 is missing or damaged in {folder}: {_describe(folder)}.") from None
    images = torch.from_numpy(dataset.data[:num_images]).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(dataset.targets[:num_images], dtype=torch.int64)
    return TensorImages(images, labels, spec, len(dataset.classes), list(dataset.classes))


def _describe(folder: Path) -> str:
    """The layout that the folder must have, and the files that are missing or differ."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    files = {**dict(CIFAR10.train_list), **dict(CIFAR10.test_list), CIFAR10.meta["filename"]: CIFAR10.meta["md5"]}
    batches = folder / CIFAR10.base_folder
    wrong = [
        f"{name} {'differs from the published file' if (batches / name).exists() else 'is missing'}"
        for name, md5 in files.items()
        if not check_integrity(str(batches / name), md5)
    ]
    return (
        f"it must hold {CIFAR10.base_folder}/ with {', '.join(files)}, as unpacked from {CIFAR10.filename}; "
        f"{', '.join(wrong) or 'they cannot be read'}"
    )
