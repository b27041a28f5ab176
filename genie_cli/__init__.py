"""genie: low-bit convolutional networks from pre-trained ones, without any real data."""

from __future__ import annotations

from typing import Any

from genie_cli.version import __version__

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`genie_cli.load`, imported on first use: the package itself must import fast, without torch."""
    if name == "load":
        from genie_cli.student.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
