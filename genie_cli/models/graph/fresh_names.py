"""Names of which each stands once."""

from __future__ import annotations


class FreshNames:
    """The names that are taken."""

    def __init__(self) -> None:
        """Begin with none."""
        self._taken: set[str] = set()

    def fresh(self, wanted: str) -> str:
        """A name that is taken from now on: `wanted`, with a number behind it where that was taken before."""
        name, number = wanted, 0
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name
