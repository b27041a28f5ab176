"""A preset: a named set of options, with what it is and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from genie_cli.errors import UsageError


@dataclass(frozen=True)
class Preset:
    """A system of the field as options of a stage.

    Attributes:
        summary: what it is, in one line.
        source: paper and venue.
        options: key -> value, over the defaults and under the params file and the flags.
        needs: key without which it cannot run -> what that is and how it is given.
    """

    summary: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)

    def check_needs(self, name: str, values: Mapping[str, Any], where: str) -> None:
        """Refuse values that lack what this preset needs.

        Args:
            name: the preset's name.
            values: key -> value, all layers together.
            where: section, for the message.

        Raises:
            UsageError: one of the keys it needs has no value.
        """
        for key, need in self.needs.items():
            if not values.get(key):
                raise UsageError(f"{where}: preset = '{name}' needs {need}.")
