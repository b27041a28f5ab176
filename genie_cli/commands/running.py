"""The shared parts of the long commands: device, processes, checks before the work, progress during it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genie_cli.errors import DeviceError, DiskFullError, GenieError, WorkerError

if TYPE_CHECKING:
    import torch

    from genie_cli.artifacts.images import ImageSet
    from genie_cli.artifacts.metadata import Arithmetic
    from genie_cli.config import LongStage, Stage
    from genie_cli.data.samples import Samples
    from genie_cli.models.teacher import Teacher
    from genie_cli.runtime.arithmetic import ChosenArithmetic
    from genie_cli.runtime.arithmetic_speed import Passes
    from genie_cli.runtime.context import RunContext
    from genie_cli.runtime.distribution import Workers
    from genie_cli.runtime.progress import Reporter
    from genie_cli.runtime.work import Work
    from genie_cli.work.folder import WorkFolder
    from genie_cli.work.room import DiskNeed


@dataclass
class Run:
    """One command at work.

    Attributes:
        device: where it computes.
        workers: with which other processes.
    """

    device: torch.device
    workers: Workers
    _arithmetic: ChosenArithmetic | None = None
    """In which arithmetic; None: not decided yet."""
    _started: float = field(default_factory=time.monotonic)
    _reporter: Reporter | None = None
    """Who shows the progress, while it is shown."""

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
        from genie_cli.runtime.arithmetic import decide_arithmetic

        self._arithmetic = decide_arithmetic(
            config.precision, self.device, self.workers, passes, unsupported, is_unfinished, self.note
        )

    def use_float32(self, reason: str) -> None:
        """Compute in float32, for a reason that the closing table says."""
        import torch

        from genie_cli.runtime.arithmetic import ChosenArithmetic

        self._arithmetic = ChosenArithmetic(torch.float32, reason)

    @contextmanager
    def working(self, work: Work, shorter: Sequence[str] = ()) -> Iterator[RunContext]:
        """Around the long part, which runs on the context; the first process shows the progress.

        Args:
            work: where finished parts and checkpoints are kept.
            shorter: options that make the part shorter, for a note where it will take long.
        """
        from genie_cli.commands.cost import cost_noted
        from genie_cli.commands.display import progress
        from genie_cli.runtime.context import RunContext
        from genie_cli.runtime.progress import silent
        from genie_cli.runtime.settings import nondeterminism_explained
        from genie_cli.runtime.shortage import BatchSplitter

        self._started = time.monotonic()
        with nondeterminism_explained(), progress() if self.workers.is_first else nullcontext(silent) as report:
            self._reporter = report
            place = "CPU" if self.device.type == "cpu" else "GPU"
            noting = cost_noted(report, place, [*shorter, *(["a GPU"] if place == "CPU" else [])])
            context = RunContext(self.device, self.dtype, self.workers, noting, work, BatchSplitter(report))
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
            finally:
                self._reporter = None

    @contextmanager
    def shortage_explained(self) -> Iterator[None]:
        """Turn a lack of memory into the user's choice.

        Raises:
            DeviceError: memory ran out, and nothing smaller was possible.
        """
        from genie_cli.runtime.shortage import is_out_of_memory

        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceError(
                f"{self.device} is out of memory (the process held {self.peak_memory()} at most): a smaller "
                "--batch-size takes less; for quantize, --memory-limit too. Nothing was written, and what is "
                "finished is kept for the same command with more memory."
            ) from None

    @contextmanager
    def resumable(
        self, config: LongStage, out: Path, determinants: dict[str, Any], need: DiskNeed, parts: tuple[int, str]
    ) -> Iterator[Work]:
        """Around the work and the writing of its output: what is done is kept until the output stands.

        Args:
            config: says how often checkpoints are due, and whether to start anew.
            out: the output, which no other run may write meanwhile.
            determinants: all that determines the result.
            need: the room on disks that it takes, found out before the work.
            parts: how many parts are kept one by one, and the noun for them, such as ``(5, "units")``.
        """
        from genie_cli.runtime.arithmetic import DTYPES
        from genie_cli.work.folder import open_work_folder, unfinished_work
        from genie_cli.work.lock import locked

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
                self.check_room(out, need, work.num_bytes())
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

    def is_unfinished(self, config: LongStage, out: Path, determinants: dict[str, Any], dtype: torch.dtype) -> bool:
        """True if an earlier run in the arithmetic `dtype` left work that this one goes on from; see `resumable`."""
        from genie_cli.work.folder import unfinished_work

        return not config.fresh and unfinished_work(out, self._known(determinants, dtype)) is not None

    def _known(self, determinants: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """All that determines the bytes of the result."""
        from genie_cli import __version__
        from genie_cli.runtime.device import kernel_kind

        versions = {"tool": __version__, "torch": _torch_version(), "kernels": kernel_kind(self.device)}
        return {**determinants, "dtype": str(dtype), **versions}

    def check_room(self, out: Path, need: DiskNeed, held: int = 0) -> None:
        """Find out whether the disks have room; the first process looks after the output's, each after its own.

        Args:
            out: the output.
            need: what the run takes.
            held: what of it an earlier run has left there.
        """
        from genie_cli.work.room import check_room

        with self.checks():
            check_room(out, need if self.workers.is_first else replace(need, beside_output=0), held)

    def note(self, message: str, warning: bool = False) -> None:
        """One line on stderr, from the first process."""
        from genie_cli.commands.display import note
        from genie_cli.runtime.progress import Note

        if not self.workers.is_first:
            return
        if self._reporter is not None:
            self._reporter(Note(message, warning))  # above the bar
        else:
            note(message, warning)

    def tell_of(self, taken: Teacher | Samples | ImageSet) -> None:
        """The notes and warnings on how a network or images were taken, from the first process."""
        from genie_cli.commands.display import tell_of

        if self.workers.is_first:
            tell_of(taken)

    def _warn(self, message: str) -> None:
        self.note(message, warning=True)

    @property
    def seconds(self) -> float:
        """Since the work began."""
        return time.monotonic() - self._started

    def description(self) -> str:
        """Device and processes, for the closing table."""
        return f"{self.device}, {self.workers.size} processes" if self.workers.size > 1 else str(self.device)

    def arithmetic(self, config: Stage) -> Arithmetic:
        """Everything about this run that decides about the last bits of its result."""
        from genie_cli.artifacts.metadata import Arithmetic
        from genie_cli.runtime.device import kernel_kind

        dtype = str(self.dtype).removeprefix("torch.")
        return Arithmetic(dtype=dtype, kernels=kernel_kind(self.device), deterministic=config.deterministic)

    def peak_memory(self) -> str:
        """The most memory that this process has held, for the closing table."""
        from genie_cli.commands.display import file_size
        from genie_cli.runtime.memory import peak_memory

        return ", ".join(f"{file_size(size)} ({place})" for place, size in peak_memory(self.device).items())

    def write_performance(self, path: Path | None, more: dict[str, Any] | None = None) -> None:
        """Seconds and peak memory as JSON: measured anew in every run, and so in a file of their own."""
        from genie_cli.artifacts.metrics import encode_metrics
        from genie_cli.runtime.arithmetic import dtype_name
        from genie_cli.runtime.atomic import atomic_write_bytes
        from genie_cli.runtime.memory import peak_memory

        if path is None:
            return
        figures = {
            "seconds": round(self.seconds, 3),
            "peak_memory": peak_memory(self.device),
            "device": str(self.device),
            "precision": dtype_name(self.dtype),
            "processes": self.workers.size,
        }
        atomic_write_bytes(path, encode_metrics({**figures, **(more or {})}))


@contextmanager
def running(config: Stage) -> Iterator[Run]:
    """Prepare the process and join the others, where there are some.

    Raises:
        UsageError: unknown device.
        DeviceError: CUDA asked for and absent.
        WorkerError: the other processes cannot be reached.
    """
    from genie_cli.runtime.device import resolve_device
    from genie_cli.runtime.distribution import joined_workers, local_device
    from genie_cli.runtime.settings import configure_process

    device = local_device(resolve_device(config.device))
    configure_process(device, config.deterministic)
    with joined_workers(device) as workers:
        run = Run(device, workers)
        with run.shortage_explained():
            yield run


def _kept(work: WorkFolder, num_parts: int, noun: str) -> str:
    """Words for all that an interrupted run leaves for the next one."""
    told = f"{work.num_parts()} of {num_parts} {noun} are kept; the same command goes on."
    return f"{told} The steps inside of the next one are kept too." if work.has_checkpoint() else told


def _torch_version() -> str:
    import torch

    return str(torch.__version__)
