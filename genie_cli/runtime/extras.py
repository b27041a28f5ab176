"""Packages that only some features need, imported when they are used: the one table of what the extras bring."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from genie_cli.errors import UsageError

_EXTRAS = {
    "sklearn": "digits",
    "scipy": "search",
    "timm": "timm",
    "torchmetrics": "tasks",
    "pycocotools": "tasks",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnx_ir": "onnx",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "matplotlib": "report",
    "tensorboard": "tensorboard",
}
"""Package, as it is imported -> the extra that installs it."""
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "onnx_ir": "onnx-ir"}
"""Package -> its name on a package index, where that is another one."""


def is_installed(package: str) -> bool:
    """True if a package can be imported."""
    return find_spec(package) is not None


def required(module: str, reader: str = "") -> ModuleType:
    """A module of a package that an extra brings.

    Args:
        module: its name, such as ``onnx`` or ``onnx_ir.passes.common``.
        reader: what needs it, as the beginning of a sentence: ``Data 'digits'``.

    Raises:
        UsageError: the package is not installed; names the extra that brings it.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise not_installed(package, reader) from None


def not_installed(package: str, reader: str = "") -> UsageError:
    """The error of a package that is missing; see `required`."""
    name = _DISTRIBUTIONS.get(package, package)
    needed = f"{reader} needs the package {name}, which" if reader else f"The package {name}"
    return UsageError(f"{needed} is not installed: pip install 'genie-cli[{_EXTRAS[package]}]'.")
