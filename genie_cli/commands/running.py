"""The shared parts of the long commands: the display, the lock, work that a later run goes on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from genie_cli.artifacts.metrics import encode_metrics
from genie_cli.commands import display
from genie_cli.commands.cost import cost_noted
from genie_cli.commands.tensorboard import check_tensorboard, scalars_written
from genie_cli.commands.verbosity import is_verbose
from genie_cli.config import LongStage, QuantizeConfig, Stage, SynthesizeConfig
from genie_cli.errors import DiskFullError
from genie_cli.runtime.arithmetic import DTYPES, dtype_name
from genie_cli.runtime.atomic import atomic_write_bytes
from genie_cli.runtime.device import kernel_kind, resolve_device
from genie_cli.runtime.distribution import joined_workers, local_device
from genie_cli.runtime.memory import peak_memory
from genie_cli.runtime.progress import Event, Note, Reporter, silent
from genie_cli.runtime.settings import configure_process
from genie_cli.runtime.work import Work
from genie_cli.stages.run import Run
from genie_cli.version import __version__
from genie_cli.work.folder import WorkFolder, open_work_folder, unfinished_work
from genie_cli.work.lock import locked
from genie_cli.work.room import DiskNeed, check_room

_KEPT = " Nothing was written, and what is finished is kept for the same command with more memory."


class CommandRun(Run):
    """One command at work: it shows its progress, and keeps what is done for the same command."""

    scalars: Path | None = None
    """Folder for TensorBoard, into which the first process writes its figures."""

    @contextmanager
    def reporting(self, shorter: Sequence[str]) -> Iterator[Reporter]:
        """The display of the progress, with a note where the work will take long; notes go above the bar."""
        notes = self.report
        with display.progress() if self.workers.is_first else nullcontext(silent) as report:
            place = "CPU" if self.device.type == "cpu" else "GPU"
            self.report = report
            try:
                with scalars_written(report, self.scalars if self.workers.is_first else None) as writing:
                    yield cost_noted(writing, place, [*shorter, *(["a GPU"] if place == "CPU" else [])])
            finally:
                self.report = notes

    @contextmanager
    def keeping(
        self, config: LongStage, out: Path, determinants: Mapping[str, Any], need: DiskNeed, parts: tuple[int, str]
    ) -> Iterator[Work]:
        """Around the work and the writing of its output, which no other run may write: see `Run.keeping`."""
        known = self._known(determinants, self.dtype)
        with ExitStack() as held:
            with self.checks():
                if self.workers.is_first:
                    held.enter_context(locked(out))
                    open_work_folder(out, known, config.checkpoint_interval, config.fresh)
                    for other in DTYPES if config.fresh else ():
                        left = unfinished_work(out, self._known(determinants, other))
                        if left is not None and other != self.dtype:
                            left.remove()
            work = open_work_folder(out, known, config.checkpoint_interval, warn=self._warn)
            try:
                self._check_room(out, need, work.num_bytes())
                done = work.num_parts()
                if done or work.has_checkpoint():
                    self.note(f"going on where an earlier run was: {done} part(s) done (--fresh starts anew).")
                yield work
            except BaseException as error:
                kept = work.num_parts() or work.has_checkpoint()
                if self.workers.is_first and not kept:
                    work.remove()  # nothing was done that could be kept
                if isinstance(error, KeyboardInterrupt) and kept:
                    error.args = (_kept(work, *parts),)
                if isinstance(error, DiskFullError) and kept:
                    error.args = (f"{error} What is finished is kept, and the same command goes on from there.",)
                raise
            if self.workers.is_first:
                work.remove()

    def is_unfinished(self, config: LongStage, out: Path, determinants: Mapping[str, Any], dtype: torch.dtype) -> bool:
        """True if an earlier run in the arithmetic `dtype` left work that this one goes on from; see `keeping`."""
        return not config.fresh and unfinished_work(out, self._known(determinants, dtype)) is not None

    def check_room(self, out: Path, need: DiskNeed) -> None:
        """Find out whether the disks have room, that of the output too; see `Run.check_room`."""
        self._check_room(out, need, 0)

    def _check_room(self, out: Path, need: DiskNeed, held: int) -> None:
        """The first process looks after the output's disk, each after its own; `held` bytes are there already."""
        with self.checks():
            check_room(out, need if self.workers.is_first else replace(need, beside_output=0), held)

    def _known(self, determinants: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """All that determines the bytes of the result."""
        versions = {"tool": __version__, "torch": str(torch.__version__), "kernels": kernel_kind(self.device)}
        return {**determinants, "dtype": str(dtype), **versions}

    def _warn(self, message: str) -> None:
        self.note(message, warning=True)

    def description(self) -> str:
        """Device and processes, for the closing table."""
        return f"{self.device}, {self.workers.size} processes" if self.workers.size > 1 else str(self.device)

    def facts_of_work(self) -> dict[str, Any]:
        """Device, arithmetic, seconds and memory, as JSON has them."""
        return {
            "device": str(self.device),
            "precision": dtype_name(self.dtype),
            "processes": self.workers.size,
            "seconds": round(self.seconds, 3),
            "peak_memory": peak_memory(self.device),
        }

    def write_performance(self, path: Path | None, more: dict[str, Any] | None = None) -> None:
        """Seconds and peak memory as JSON: measured anew in every run, and so in a file of their own."""
        if path is None:
            return
        atomic_write_bytes(path, encode_metrics({**self.facts_of_work(), **(more or {})}))


@contextmanager
def running(config: Stage, kind: type[CommandRun] = CommandRun) -> Iterator[CommandRun]:
    """Prepare the process and join the others, where there are some.

    Args:
        config: the stage's.
        kind: the class of the run.

    Raises:
        UsageError: unknown device, or --tensorboard without its package.
        DeviceError: CUDA asked for and absent.
        WorkerError: the other processes cannot be reached.
    """
    scalars = config.tensorboard if isinstance(config, QuantizeConfig | SynthesizeConfig) else None
    check_tensorboard(scalars)
    device = local_device(resolve_device(config.device))
    configure_process(device, config.deterministic)
    with joined_workers(device) as workers:
        run = kind(device, workers, _show_note)
        run.scalars = scalars
        if is_verbose() and workers.is_first:
            _tell_details(config, device)
        with run.shortage_explained(_KEPT):
            yield run


def _tell_details(config: Stage, device: torch.device) -> None:
    """Versions, the device, and the keys of the configuration that are not at their defaults."""
    display.note(
        f"genie {__version__}, torch {torch.__version__}, {device} ({kernel_kind(device)}), "
        f"{torch.get_num_threads()} thread(s)."
    )
    for key in sorted(config.model_fields_set):
        display.note(f"{key} = {getattr(config, key)}")


def _kept(work: WorkFolder, num_parts: int, noun: str) -> str:
    """Words for all that an interrupted run leaves for the next one."""
    told = f"{work.num_parts()} of {num_parts} {noun} are kept; the same command goes on."
    return f"{told} The steps inside of the next one are kept too." if work.has_checkpoint() else told


def _show_note(event: Event) -> None:
    """Show a note where no progress is shown."""
    if isinstance(event, Note):
        display.note(event.message, event.warning)
