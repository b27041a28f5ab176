"""Open the images that the text of ``--data`` or ``--images`` names."""

from __future__ import annotations

from pathlib import Path

from genie_cli.config import InputSpec
from genie_cli.data.cifar10 import open_cifar10
from genie_cli.data.class_order import ClassOrder, order_warnings
from genie_cli.data.detection_folder import open_detection_folder
from genie_cli.data.digits import open_digits
from genie_cli.data.factory import open_factory
from genie_cli.data.flat_folder import open_flat_folder
from genie_cli.data.image_folder import open_image_folder
from genie_cli.data.samples import Samples
from genie_cli.data.segmentation_folder import open_segmentation_folder
from genie_cli.data.tensors import open_tensors
from genie_cli.errors import UsageError, nearest
from genie_cli.runtime.user_code import names_code

_FORMS = {
    "digits": "digits",
    "cifar10": "cifar10:FOLDER",
    "imagefolder": "imagefolder:PATH",
    "images": "images:FOLDER",
    "segmentation": "segmentation:FOLDER",
    "detection": "detection:FOLDER",
}
"""Kind of data -> how it is written; the other forms are FILE.safetensors and FILE.py:FACTORY."""
_FOLDERS = {
    "images": open_flat_folder,
    "segmentation": open_segmentation_folder,
    "detection": open_detection_folder,
}
"""Kind of data -> opener, of those that are opened alike."""


def names_source(text: str) -> bool:
    """True if `text` names data by a kind, such as ``digits`` or ``cifar10:FOLDER``, or by a factory, not a file."""
    return text.partition(":")[0] in _FORMS or names_code(text)


def open_data(
    data: str,
    spec: InputSpec,
    num_workers: int = 0,
    num_images: int | None = None,
    train: bool = False,
    class_order: ClassOrder | None = None,
) -> Samples:
    """The images that `data` names, prepared for one network.

    Args:
        data: ``digits``, ``cifar10:FOLDER``, ``imagefolder:PATH``, ``images:FOLDER``, ``segmentation:FOLDER``,
            ``detection:FOLDER``, a ``.safetensors`` file, or ``FILE.py:FACTORY``, whose code is run.
        spec: the network's input.
        num_workers: processes that decode image files; 0 decodes in this one.
        num_images: number of images to keep, from the first on; None: all.
        train: open images to learn from: the training images of a source that has both. Labels may be missing.
        class_order: order of class folders; None: as text, with a warning where their numbers say another.

    Raises:
        UsageError: none of these forms, or a package that the data need is not installed.
        InputError: data that are missing, damaged or of another shape than the network's input, or a factory that
            fails.
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
    if kind in _FOLDERS and place:
        return _FOLDERS[kind](folder, spec, num_workers, num_images)
    if names_code(data):
        return open_factory(data, spec, num_images)
    if data.endswith(".safetensors"):
        return open_tensors(Path(data).expanduser(), spec, num_images, labelled=not train)
    raise UsageError(
        f"Unknown data '{data}': use {', '.join(_FORMS.values())}, FILE.safetensors or FILE.py:FACTORY.{_hint(data)}"
    )


def _hint(data: str) -> str:
    kind = data.partition(":")[0]
    if data and ":" not in data and Path(data).expanduser().is_dir():
        return f" For image files in class folders write imagefolder:{data}, for images alone images:{data}."
    if kind in _FORMS:
        return f" It is written {_FORMS[kind]}."
    return nearest(kind, _FORMS)
