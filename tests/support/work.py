"""Work folders of runs that are killed, and of runs whose files are measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from genie_cli.runtime.distribution import Workers
from genie_cli.runtime.work import Saved
from genie_cli.work.folder import WorkFolder

Result = TypeVar("Result")


class KilledError(Exception):
    """Stands for the end of a process."""


class MortalFolder(WorkFolder):
    """Keeps the state whenever it can, and dies right after so many checkpoints and parts."""

    def __init__(self, path: Path, lives: int) -> None:
        super().__init__(path, interval=0)
        self._lives = lives

    def save_checkpoint(self, name: str, saved: Saved, workers: Workers) -> None:
        super().save_checkpoint(name, saved, workers)
        self._die()

    def finish(self, name: str, saved: Saved) -> None:
        super().finish(name, saved)
        self._die()

    def _die(self) -> None:
        self._lives -= 1
        if self._lives <= 0:
            raise KilledError


class TornFolder(WorkFolder):
    """Keeps the state whenever it can, and dies instead of the checkpoint after so many.

    Attributes:
        found: part -> the step of the checkpoint that the run went on from.
    """

    def __init__(self, path: Path, lives: float = math.inf) -> None:
        super().__init__(path, interval=0)
        self._lives = lives
        self.found: dict[str, int] = {}

    def checkpoint(self, name: str, workers: Workers) -> Saved | None:
        saved = super().checkpoint(name, workers)
        if saved is not None:
            self.found[name] = saved.facts["step"]
        return saved

    def save_checkpoint(self, name: str, saved: Saved, workers: Workers) -> None:
        self._lives -= 1
        if self._lives < 0:
            raise KilledError
        super().save_checkpoint(name, saved, workers)


class MeasuredFolder(WorkFolder):
    """Keeps the state whenever it can, and knows the sizes of the largest checkpoint and of all parts, in bytes."""

    largest = parts = 0

    def save_checkpoint(self, name: str, saved: Saved, workers: Workers) -> None:
        super().save_checkpoint(name, saved, workers)
        self.largest = max(self.largest, *(file.stat().st_size for file in self.path.glob("*.checkpoint*")))

    def finish(self, name: str, saved: Saved) -> None:
        super().finish(name, saved)
        self.parts += (self.path / f"{name}.part").stat().st_size


def until_done(run: Callable[[WorkFolder], Result], folder: Path, lives: int) -> tuple[Result, int]:
    """The result of `run`, killed and started again until it ends, and how often it was killed."""
    for deaths in range(200):
        try:
            return run(MortalFolder(folder, lives)), deaths
        except KilledError:
            continue
    raise AssertionError("It never ended.")
