"""Open the labelled images that the text of ``--data`` names."""

from __future__ import annotations

from pathlib import Path

from genie_cli.config import InputSpec
from genie_cli.data.cifar10 import open_cifar10
from genie_cli.data.class_order import ClassOrder, order_warnings
from genie_cli.data.digits import open_digits
from genie_cli.data.image_folder import open_image_folder
from genie_cli.data.labeled import LabeledImages
from genie_cli.data.tensors import open_tensors
from genie_cli.errors import UsageError, nearest

_FORMS = {"digits": "digits", "cifar10": "cifar10:FOLDER", "imagefolder": "imagefolder:PATH"}
"""Kind of data -> how it is written; the other form is a file of tensors, FILE.safetensors."""


def names_source(text: str) -> bool:
    """True if `text` names data by a kind, such as ``digits`` or ``cifar10:FOLDER``, rather than a file."""
    return text.partition(":")[0] in _FORMS


def open_data(
    data: str,
    spec: InputSpec,
    num_workers: int = 0,
    num_images: int | None = None,
    train: bool = False,
    class_order: ClassOrder | None = None,
) -> LabeledImages:
    """The labelled images that `data` names, prepared for one network.

    Args:
        data: ``digits``, ``cifar10:FOLDER``, ``imagefolder:PATH`` or a ``.safetensors`` file.
        spec: the network's input.
        num_workers: processes that decode image files; 0 decodes in this one.
        num_images: number of images to keep, from the first on; None: all.
        train: open images to learn from: the training images of a source that has both. Labels may be missing.
        class_order: order of class folders; None: as text, with a warning where their numbers say another.

    Raises:
        UsageError: none of these forms.
        InputError: data that are missing, damaged or of another shape than the network's input.
    """
    if num_images is not None and num_images < 1:
        raise UsageError(f"num_images = {num_images} cannot be used: it must be at least 1.")
    kind, _, place = data.partition(":")
    folder = Path(place).expanduser()
    if data == "digits":
        return open_digits(spec, num_images, train)
    if kind == "cifar10" and place:
        return open_cifar10(folder, spec, num_images, train)
    if kind == "imagefolder" and place:
        images = open_image_folder(folder, spec, num_workers, num_images, class_order or "text")
        if class_order is None and not train:
            images.warnings = order_warnings(images.class_names or ())
        return images
    if data.endswith(".safetensors"):
        return open_tensors(Path(data).expanduser(), spec, num_images, labelled=not train)
    raise UsageError(f"Unknown data '{data}': use {', '.join(_FORMS.values())} or FILE.safetensors.{_hint(data)}")


def _hint(data: str) -> str:
    kind = data.partition(":")[0]
    if data and ":" not in data and Path(data).expanduser().is_dir():
        return f" For image files in class folders write imagefolder:{data}."
    if kind in _FORMS:
        return f" It is written {_FORMS[kind]}."
    return nearest(kind, _FORMS)
