"""The finished work of a run, kept beside its output, so that the same command goes on where it was killed.

A work folder is named by the hash of all that determines the result, and holds

- parts: finished batches or units, for good;
- checkpoints: the state inside the part at work, in two slots by turns, so that one always stands.

Several processes that work on one part each keep a state of their own, named by rank and number of
processes, and go on from the newest step that all of them have. None writes over a slot before all
have filled the other one, so that there is such a step at any moment. Where there is none (another
number of processes, or file systems of their own), the part starts from its beginning.

Each file says its own content's hash: one that was damaged or cut off counts as not there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from genie_cli.errors import DiskFullError, InputError
from genie_cli.runtime.atomic import atomic_write_bytes
from genie_cli.runtime.distribution import Workers
from genie_cli.runtime.tensor_bytes import tensors_sha256, write_bytes
from genie_cli.runtime.work import Saved, Work

ROOT = ".genie-work"
"""Folder beside an output that holds the work folders of its neighbours."""
WORK_VERSION = 2
"""Raised whenever a part or a checkpoint of an older genie cannot be continued."""
DEFAULT_INTERVAL = 180.0
"""Seconds between two checkpoints."""
_KEY = "genie_work"
_ABOUT = "about.json"


class WorkFolder(Work):
    """A work folder on the disk."""

    def __init__(
        self, path: Path, interval: float = DEFAULT_INTERVAL, warn: Callable[[str], None] = lambda message: None
    ) -> None:
        """Use the folder `path`, made by `open_work_folder`; a checkpoint is due every `interval` seconds.

        `warn` is told, once, of a checkpoint that the disk has no room for.
        """
        self.path = path
        self._interval = interval
        self._warn: Callable[[str], None] | None = warn
        self._last: dict[str, float] = {}
        self._turns: dict[str, int] = {}

    def part(self, name: str) -> Saved | None:
        """See `Work.part`."""
        return _read(self.path / f"{name}.part")

    def finish(self, name: str, saved: Saved) -> None:
        """See `Work.finish`."""
        _write(self.path / f"{name}.part", saved)
        for own in (f"{name}.checkpoint*", f"{name}.*.checkpoint*"):  # of any number of processes
            for slot in self.path.glob(own):
                slot.unlink(missing_ok=True)

    def checkpoint(self, name: str, workers: Workers) -> Saved | None:
        """See `Work.checkpoint`."""
        slots = self._slots(name, workers)
        found = [(turn, saved) for turn, slot in enumerate(slots) if (saved := _read(slot)) is not None]
        step = _newest_common((saved.facts["step"] for _, saved in found), workers)
        turns, chosen = 0, None
        for turn, saved in found:
            if saved.facts["step"] == step:
                turns, chosen = turn + 1, saved  # the next one goes to the other slot
            elif step is None or saved.facts["step"] > step:
                slots[turn].unlink(missing_ok=True)  # others lack it, and steps taken anew may come to differ
        self._turns[name] = turns
        return chosen

    def is_due(self, name: str, workers: Workers) -> bool:
        """See `Work.is_due`; the time runs from the first question."""
        now = time.monotonic()
        is_due = workers.is_first and now - self._last.setdefault(name, now) >= self._interval
        return bool(workers.sum_(torch.tensor(float(is_due))))

    def save_checkpoint(self, name: str, saved: Saved, workers: Workers) -> None:
        """See `Work.save_checkpoint`; without room the run goes on, and less of it can be gone on from."""
        is_kept, turn = True, self._turns.get(name, 0)
        try:
            _write(self._slots(name, workers)[turn % 2], saved)
        except DiskFullError as error:
            is_kept = False
            if self._warn is not None:
                self._warn(f"a checkpoint could not be kept, and the run goes on without: {error}")
            self._warn = None
        if int(workers.sum_(torch.tensor(float(is_kept)))) == workers.size:
            self._turns[name] = turn + 1  # else the other slot still holds the newest step that all have
        self._last[name] = time.monotonic()

    def num_parts(self) -> int:
        """The number of finished parts."""
        return sum(1 for _ in self.path.glob("*.part"))

    def num_bytes(self) -> int:
        """Bytes of parts and checkpoints on the disk."""
        return sum(file.stat().st_size for file in self.path.iterdir() if file.is_file())

    def has_checkpoint(self) -> bool:
        """True if a part was left half done."""
        return any(self.path.glob("*.checkpoint*"))

    def remove(self) -> None:
        """Delete the folder, and the root where nothing else is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        try:
            self.path.parent.rmdir()
        except OSError:
            return

    def _slots(self, name: str, workers: Workers) -> list[Path]:
        owner = f"-{workers.rank}of{workers.size}" if workers.size > 1 else ""
        return [self.path / f"{name}.checkpoint{turn}{owner}" for turn in (0, 1)]


def open_work_folder(
    out: Path,
    determinants: Mapping[str, Any],
    interval: float = DEFAULT_INTERVAL,
    fresh: bool = False,
    warn: Callable[[str], None] = lambda message: None,
) -> WorkFolder:
    """The work folder of a run that writes `out`, made where it is missing.

    Args:
        out: the output, beside which the folder lies.
        determinants: all that determines the result, JSON values: command, configuration, hashes.
        interval: seconds between checkpoints.
        fresh: throw away what an earlier run left.
        warn: see `WorkFolder`.

    Raises:
        InputError: the folder cannot be made.
    """
    path, text = _place(out, determinants)
    if fresh:
        shutil.rmtree(path, ignore_errors=True)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Work folder {path} cannot be made: {error.strerror}.") from error
    if not (path / _ABOUT).is_file():
        try:
            atomic_write_bytes(path / _ABOUT, text.encode())
        except InputError:
            with suppress(OSError):  # where it is empty
                path.rmdir()
            raise
    return WorkFolder(path, interval, warn)


def unfinished_work(out: Path, determinants: Mapping[str, Any]) -> WorkFolder | None:
    """The work folder of a run that writes `out`, if an earlier one has left work to go on from.

    Arguments are those of `open_work_folder`.
    """
    folder = WorkFolder(_place(out, determinants)[0])
    return folder if folder.num_parts() or folder.has_checkpoint() else None


def find_work_folders(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Work folders anywhere in `folder`, each with what it is for; links are not followed."""
    found = []
    for about in sorted(folder.rglob(f"{ROOT}/*/{_ABOUT}")):
        if about.is_symlink() or about.parent.is_symlink():
            continue
        try:
            fields = json.loads(about.read_bytes())
        except (OSError, ValueError, RecursionError):
            fields = {}
        found.append((about.parent, fields if isinstance(fields, dict) else {}))
    return found


def _place(out: Path, determinants: Mapping[str, Any]) -> tuple[Path, str]:
    """The folder of a run, and the text whose hash names it."""
    about = {"version": WORK_VERSION, "out": out.name, **determinants}
    text = json.dumps(about, sort_keys=True, allow_nan=False, indent=1)
    return out.absolute().parent / ROOT / hashlib.sha256(text.encode()).hexdigest()[:32], text


def _newest_common(steps: Iterable[int], workers: Workers) -> int | None:
    """The newest of the steps that every process has."""
    everyones = workers.all_gather_rows(torch.tensor(sorted(set(steps)), dtype=torch.int64)).tolist()
    return max((step for step in everyones if everyones.count(step) == workers.size), default=None)


def _write(path: Path, saved: Saved) -> None:
    said = json.dumps({"facts": saved.facts, "sha256": _sha256(saved)}, sort_keys=True)
    atomic_write_bytes(path, write_bytes(saved.tensors, {_KEY: said}))


def _read(path: Path) -> Saved | None:
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        saved = Saved(tensors, said["facts"])
        if said["sha256"] == _sha256(saved):
            return saved
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return None


def _sha256(saved: Saved) -> str:
    said = f"{json.dumps(saved.facts, sort_keys=True)}{tensors_sha256(saved.tensors)}"
    return hashlib.sha256(said.encode()).hexdigest()
