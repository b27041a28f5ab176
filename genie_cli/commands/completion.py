"""Completion of values in a shell: names of networks, presets and whatever else a field lists, without torch."""

from __future__ import annotations

import re
from collections.abc import Callable

from genie_cli.config.fields import SchemaField

_LISTED = re.compile(r"(?:^|:\s*)((?:[\w-]+,\s+(?:or\s+)?)+[\w-]+(?:\s+or\s+[\w-]+)?)")
"""Names at the beginning or after a colon: ``Named recipe: genie, zeroq, swing.``"""

Completion = Callable[[str], list[str]]


def completion_of(section: str, field: SchemaField) -> Completion | None:
    """The names that an option of a field takes; None where they are no names.

    Args:
        section: params section of the field.
        field: the field.
    """
    if section == "model" and field.name == "name":
        return networks
    if field.name == "preset":
        return _beginning(lambda: presets_of(section))
    names = list(field.choices) or _listed(field.sentence)
    return _beginning(lambda: names) if names else None


def networks(incomplete: str) -> list[str]:
    """Names of networks."""
    from genie_cli.models.listed_names import listed_names

    return listed_names(incomplete)


def presets_of(command: str) -> list[str]:
    """Names of a command's presets."""
    from genie_cli.quantization.presets import PRESETS as QUANTIZATION
    from genie_cli.synthesis.presets import PRESETS as SYNTHESIS

    return list({"synthesize": SYNTHESIS, "quantize": QUANTIZATION}.get(command, {}))


def sections(incomplete: str) -> list[str]:
    """Commands that have a params section."""
    names = ("synthesize", "quantize", "sensitivity", "evaluate", "export")
    return [name for name in names if name.startswith(incomplete)]


def any_preset(incomplete: str) -> list[str]:
    """Presets of all commands."""
    return [name for of in ("synthesize", "quantize") for name in presets_of(of) if name.startswith(incomplete)]


def _listed(sentence: str) -> list[str]:
    found = _LISTED.search(sentence)
    words = re.findall(r"[\w-]+", found[1].replace(" or ", " ")) if found else []
    return [word for word in words if not word.isupper()]  # FILE stands for a name


def _beginning(names: Callable[[], list[str]]) -> Completion:
    def complete(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete
