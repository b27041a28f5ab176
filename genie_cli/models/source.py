"""The source of a teacher: the builder of its network, and its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from genie_cli.config import InputSpec
from genie_cli.errors import InputError


@dataclass(frozen=True)
class Source:
    """The recipe that turns a SPEC into a network: a builder, its default input and its default weights."""

    build: Callable[[], nn.Module]
    input: InputSpec
    default_state: Callable[[], dict[str, Tensor]] | None
    """Weights when --weights is not given; None: the network as built."""
    named_state: Callable[[str], dict[str, Tensor]] | None = None
    """Weights by a torchvision name."""
    input_is_known: bool = True
    """False: `input` stands in where a user's own network says nothing."""
    ignored: tuple[str, ...] = ()
    """Prefixes of keys in weights that the network leaves out."""


def no_weights(name: str) -> dict[str, Tensor]:
    """Stand in for the weights of a network that has none.

    Raises:
        InputError: always.
    """
    raise InputError(f"Model '{name}' comes without weights: name a file with --weights.")


def looks_like_file(weights: str) -> bool:
    """True if `weights` names a file rather than a set of torchvision's weights."""
    return "/" in weights or "." in weights or Path(weights).is_file()
