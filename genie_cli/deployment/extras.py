"""Packages that only deployment needs, imported when they are used."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from genie_cli.errors import UsageError

_EXTRAS = {"onnx": "onnx", "onnxscript": "onnx", "onnx_ir": "onnx", "onnxruntime": "onnx", "openvino": "openvino"}
"""Package -> the extra that installs it."""


def is_installed(package: str) -> bool:
    """True if a package can be imported."""
    return find_spec(package) is not None


def required(package: str) -> ModuleType:
    """The package.

    Raises:
        UsageError: it is not installed; names the extra that brings it.
    """
    try:
        return import_module(package)
    except ImportError:
        extra = _EXTRAS[package]
        raise UsageError(
            f"The package {package} is not installed: install it with pip install 'genie-cli[{extra}]'."
        ) from None
