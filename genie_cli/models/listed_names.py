"""Names of networks, read from the packages' source: for shell completion, which cannot wait for torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

_REGISTERED = re.compile(r"^@register_model\(?[^\n]*\n(?:@[^\n]*\n)*def (\w+)\(", re.MULTILINE)
"""A function that builds a network, as torchvision and timm register it."""
EMBEDDED = "digits_resnet"
CIFAR_DEPTHS = (20, 32, 44, 56)
TIMM = "timm:"


def own_names() -> list[str]:
    """The networks that come with genie: the embedded one, and those that need weights."""
    return [EMBEDDED, *(f"cifar_resnet{depth}" for depth in CIFAR_DEPTHS)]


def listed_names(beginning: str) -> list[str]:
    """Names that begin so, in the form of ``--model``; timm's where the beginning has their prefix."""
    if beginning.startswith(TIMM):
        found = [f"{TIMM}{name}" for name in _registered_in("timm")]
    else:
        found = [*own_names(), *sorted(_registered_in("torchvision")), TIMM]
    return [name for name in found if name.startswith(beginning)]


def _registered_in(package: str) -> Iterator[str]:
    """Networks of a package's folder ``models``, without importing it."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for file in sorted((Path(folder) / "models").glob("*.py")):
            yield from _REGISTERED.findall(file.read_text(encoding="utf-8"))
