"""timm's networks, as ``timm:NAME``: their weights, and the images that they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor, nn

from genie_cli.config import InputSpec
from genie_cli.errors import InputError, unknown_name
from genie_cli.models.source import Source, no_weights
from genie_cli.runtime.extras import required

PREFIX = "timm:"
"""Beginning of the names of timm's networks; no module of a user is found under it."""
_WILDCARDS = set("*?[")


@dataclass(frozen=True)
class TimmEntry:
    """A network that timm knows.

    Attributes:
        name: as ``--model`` takes it.
        input: channels, height and width of the images that its weights were made for.
        tags: its sets of weights, the default one first, each of which ``timm:NAME.TAG`` names.
    """

    name: str
    input: tuple[int, int, int]
    tags: tuple[str, ...]


def source_of(spec: str) -> Source:
    """The source of ``timm:NAME`` or ``timm:NAME.TAG``. Its network declares its input itself.

    Raises:
        UsageError: timm is not installed, or does not know the name.
    """
    timm, name = _timm(spec), spec.removeprefix(PREFIX)
    architecture, _, tag = name.partition(".")
    architectures = timm.list_models()
    if architecture not in architectures:
        told = ": `genie models --timm FILTER` lists timm's names"
        raise unknown_name("model", spec, [f"{PREFIX}{known}" for known in architectures], told)
    tags = _tags(timm, architecture)
    if tag and tag not in tags:
        raise unknown_name("weights", tag, tags, f" of timm's '{architecture}': {', '.join(tags) or 'none'}")

    def build() -> nn.Module:
        network: nn.Module = timm.create_model(name, pretrained=False)
        return network

    return Source(
        build, InputSpec(), lambda: _pretrained(timm, spec, name, has_weights=bool(tags)), input_is_known=False
    )


def entries(pattern: str) -> list[TimmEntry]:
    """Networks of timm whose names hold `pattern`, or fit it where it has wildcards.

    Raises:
        UsageError: timm is not installed, or no name fits.
    """
    timm = _timm(f"{PREFIX}{pattern}")
    wanted = pattern if _WILDCARDS & set(pattern) else f"*{pattern}*"
    names: Sequence[str] = timm.list_models(wanted)
    if not names:
        raise unknown_name("timm model", pattern, timm.list_models(), ": no name of timm's networks fits it")
    found = []
    for name in names:
        config = timm.get_pretrained_cfg(name)
        input_size = (3, 224, 224) if config is None else tuple(config.input_size)
        found.append(TimmEntry(f"{PREFIX}{name}", input_size, _tags(timm, name)))
    return found


def _timm(spec: str) -> ModuleType:
    return required("timm", f"Model '{spec}'")


def _tags(timm: ModuleType, architecture: str) -> tuple[str, ...]:
    """The sets of weights of an architecture, the default one first."""
    names = timm.list_models(f"{architecture}.*", pretrained=True)
    default = timm.get_pretrained_cfg(architecture)
    tags = [name.partition(".")[2] for name in names if name.partition(".")[0] == architecture]
    return tuple(sorted(tags, key=lambda tag: default is None or tag != default.tag))


def _pretrained(timm: ModuleType, spec: str, name: str, has_weights: bool) -> dict[str, Tensor]:
    """The weights that timm has, or downloads, for a network.

    Raises:
        InputError: it has none, or they cannot be downloaded.
    """
    if not has_weights:
        return no_weights(spec)
    try:
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # of the hub's client, of the network, or of a damaged file in the cache
        reason = next(iter(str(error).splitlines()), "").rstrip(".") or type(error).__name__
        raise InputError(
            f"No weights for '{spec}': timm cannot download them, and has none in its cache ({reason}). Download them "
            "where there is a connection, and name the file with --weights."
        ) from None
    return state
