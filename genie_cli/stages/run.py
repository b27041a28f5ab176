"""A run of a stage: device, processes and arithmetic; checks before the work, progress during it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from genie_cli.artifacts.metadata import Arithmetic
from genie_cli.config import LongStage, Stage
from genie_cli.errors import DeviceError, GenieError, WorkerError
from genie_cli.runtime.arithmetic import ChosenArithmetic, decide_arithmetic
from genie_cli.runtime.arithmetic_speed import Passes
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.device import kernel_kind
from genie_cli.runtime.distribution import Workers
from genie_cli.runtime.memory import peak_memory
from genie_cli.runtime.progress import Note, Reporter, silent
from genie_cli.runtime.settings import nondeterminism_explained
from genie_cli.runtime.shortage import BatchSplitter, is_out_of_memory
from genie_cli.runtime.work import NO_WORK, Work
from genie_cli.sizes import file_size
from genie_cli.work.room import DiskNeed, check_room

if TYPE_CHECKING:  # a synthesis does not run what opens data
    from genie_cli.artifacts.images import ImageSet
    from genie_cli.data.samples import Samples
    from genie_cli.models.teacher import Teacher


@dataclass
class Run:
    """One stage at work; this one keeps no unfinished work, and hands notes and progress to a reporter.

    Attributes:
        device: where it computes.
        workers: with which other processes.
        report: receives notes and progress, of the first process.
    """

    device: torch.device
    workers: Workers
    report: Reporter
    _arithmetic: ChosenArithmetic | None = None
    """In which arithmetic; None: not decided yet."""
    _started: float = field(default_factory=time.monotonic)

    @contextmanager
    def checks(self) -> Iterator[None]:
        """Around everything that can be wrong with the input: where one process objects, all end."""
        with self.workers.agreeing():
            yield

    @property
    def chosen_arithmetic(self) -> ChosenArithmetic:
        """In which arithmetic it computes, and why."""
        assert self._arithmetic is not None, "the arithmetic is used before it is decided"
        return self._arithmetic

    @property
    def dtype(self) -> torch.dtype:
        """The arithmetic alone."""
        return self.chosen_arithmetic.dtype

    def decide_arithmetic(
        self,
        config: Stage,
        passes: Passes,
        unsupported: Callable[[RunContext], str | None],
        is_unfinished: Callable[[torch.dtype], bool] = lambda dtype: False,
    ) -> None:
        """Decide the arithmetic, before the work; `runtime.arithmetic.decide_arithmetic` says how."""
        self._arithmetic = decide_arithmetic(
            config.precision, self.device, self.workers, passes, unsupported, is_unfinished, self.note
        )

    def use_float32(self, reason: str) -> None:
        """Compute in float32, for a reason that the closing table says."""
        self._arithmetic = ChosenArithmetic(torch.float32, reason)

    @contextmanager
    def working(self, work: Work, shorter: Sequence[str] = ()) -> Iterator[RunContext]:
        """Around the long part, which runs on the context; the first process reports the progress.

        Args:
            work: where finished parts and checkpoints are kept.
            shorter: options that make the part shorter, for a note where it will take long.
        """
        self._started = time.monotonic()
        with nondeterminism_explained(), self.reporting(shorter) as report:
            context = RunContext(self.device, self.dtype, self.workers, report, work, BatchSplitter(report))
            try:
                yield context
            except WorkerError:
                if context.interrupts.is_asked:  # the others were too, and were faster
                    raise KeyboardInterrupt from None
                raise
            except GenieError as error:
                if error.is_shared is None:
                    error.is_shared = False  # each process works on something else
                raise

    @contextmanager
    def reporting(self, shorter: Sequence[str]) -> Iterator[Reporter]:
        """A reporter for the long part; see `working`."""
        yield self.report if self.workers.is_first else silent

    @contextmanager
    def keeping(
        self, config: LongStage, out: Path, determinants: Mapping[str, Any], need: DiskNeed, parts: tuple[int, str]
    ) -> Iterator[Work]:
        """Around the work and the use of its result, with a place to keep what is done; this one keeps nothing.

        Args:
            config: says how often checkpoints are due, and whether to start anew.
            out: the output.
            determinants: all that determines the result.
            need: the room on disks that it takes, found out before the work.
            parts: how many parts are kept one by one, and the noun for them, such as ``(5, "units")``.

        Raises:
            InputError: a disk has less room than is needed on it.
        """
        self.check_room(out, need)
        yield NO_WORK

    def is_unfinished(self, config: LongStage, out: Path, determinants: Mapping[str, Any], dtype: torch.dtype) -> bool:
        """True if an earlier run in the arithmetic `dtype` left work that this one goes on from; see `keeping`."""
        return False

    def check_room(self, out: Path, need: DiskNeed) -> None:
        """Find out whether the disk for temporary files has room; nothing is written beside an output.

        Raises:
            InputError: it has less room than is needed on it.
        """
        check_room(out, DiskNeed(0, need.temporary))

    def planned(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Take in what is known of the work before it begins, name -> plain value; a run that only plans asks."""

    def note(self, message: str, warning: bool = False) -> None:
        """One line for the user, from the first process."""
        if self.workers.is_first:
            self.report(Note(message, warning))

    def tell_of(self, taken: Teacher | Samples | ImageSet) -> None:
        """The notes and warnings on how a network or images were taken, from the first process."""
        for warning, messages in ((False, taken.notes), (True, taken.warnings)):
            for message in messages:
                self.note(message, warning)

    def tell_of_idle(self, num_batches: int | None) -> None:
        """A warning where there are more processes than batches; None: their number is not known."""
        if num_batches is not None and self.workers.size > num_batches:
            self.note(
                f"{self.workers.size} processes for {num_batches} batch(es): {self.workers.size - num_batches} are "
                "idle; a smaller --batch-size makes more batches.",
                warning=True,
            )

    @property
    def seconds(self) -> float:
        """Since the work began."""
        return time.monotonic() - self._started

    def arithmetic(self, config: Stage) -> Arithmetic:
        """Everything about this run that decides about the last bits of its result."""
        dtype = str(self.dtype).removeprefix("torch.")
        return Arithmetic(dtype=dtype, kernels=kernel_kind(self.device), deterministic=config.deterministic)

    def peak_memory(self) -> str:
        """The most memory that this process has held, for a person to read."""
        return ", ".join(f"{file_size(size)} ({place})" for place, size in peak_memory(self.device).items())

    @contextmanager
    def shortage_explained(self, kept: str = "") -> Iterator[None]:
        """Turn a lack of memory into the user's choice.

        Args:
            kept: a sentence on what is kept.

        Raises:
            DeviceError: memory ran out, and nothing smaller was possible.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceError(
                f"{self.device} is out of memory (the process held {self.peak_memory()} at most): a smaller "
                f"--batch-size takes less; for quantize, --memory-limit too.{kept}"
            ) from None
