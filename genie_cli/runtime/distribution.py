"""Several processes that work on one stage, started by ``torchrun``: gloo for tensors on hosts, NCCL on GPUs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from genie_cli.errors import DeviceError, GenieError, UsageError, WorkerError

_TIMEOUT = timedelta(hours=12)
"""Time that processes wait for one with more work; a dead process is noticed at once, by its closed connection."""


@dataclass(frozen=True)
class Workers:
    """The processes that work on one stage together; one alone by default.

    Attributes:
        rank: this process's number, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """True for the process that prints and writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This process's indices out of `count`: every `size`-th."""
        return range(self.rank, count, self.size)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, in place.

        Raises:
            WorkerError: another process has ended.
        """
        if self.size > 1:
            on_wire = tensor.contiguous()
            with _lost_peers_named():
                dist.all_reduce(on_wire)
            if on_wire is not tensor:
                tensor.copy_(on_wire)
        return tensor

    def all_gather_rows(self, tensor: Tensor) -> Tensor:
        """Tensors ``[k, ...]`` of all processes, joined in rank order; k may differ.

        Raises:
            WorkerError: another process has ended.
        """
        if self.size == 1:
            return tensor
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(tensor)
        largest = int(self.sum_(counts).max())
        padded = tensor.new_zeros(largest, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with _lost_peers_named():
            dist.all_gather(parts, padded)
        rows = [part[:count] for part, count in zip(parts, counts.tolist(), strict=True)]
        return torch.cat(rows)

    def agree(self, error: GenieError | None) -> None:
        """End all processes alike where one of them has an error.

        Args:
            error: the error of this process, or None.

        Raises:
            GenieError: the error of the first process that has one, in every process.
            WorkerError: another process has ended.
        """
        if self.size == 1:
            if error is not None:
                raise error
            return
        errors: list[GenieError | None] = [None] * self.size
        with _lost_peers_named():
            dist.all_gather_object(errors, error)
        found = [(rank, each) for rank, each in enumerate(errors) if each is not None]
        if not found:
            return
        rank, first = found[0]
        named = first if rank == 0 or len(found) == self.size else type(first)(f"Process {rank}: {first}")
        named.is_shared = True
        raise named from None

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Wrap checks that can fail in one process alone, while no process is in the middle of other work.

        Raises:
            GenieError: as `agree` does.
        """
        error = None
        try:
            yield
        except GenieError as raised:
            error = raised
        self.agree(error)


SOLO = Workers()


@contextmanager
def joined_workers(device: torch.device) -> Iterator[Workers]:
    """Join the processes that ``torchrun`` has started; without it, this process works alone.

    Args:
        device: where this process computes.

    Raises:
        WorkerError: the others cannot be reached.
    """
    size = _variable("WORLD_SIZE")
    if size == 1 or "RANK" not in os.environ:
        yield SOLO
        return
    try:
        with _lost_peers_named():
            if device.type == "cuda":
                # gloo, for what lies on the host, notices a dead process at once, even where NCCL would wait
                dist.init_process_group("cpu:gloo,cuda:nccl", timeout=_TIMEOUT, device_id=device)
            else:
                dist.init_process_group("gloo", timeout=_TIMEOUT)
    except ValueError:  # a variable is missing or no number
        raise _not_of_torchrun() from None
    try:
        yield Workers(int(os.environ["RANK"]), size)
    finally:
        dist.destroy_process_group()


def processes_here() -> int:
    """The number of processes that ``torchrun`` has started on this machine; without it, one."""
    return _variable("LOCAL_WORLD_SIZE")


def _variable(name: str) -> int:
    try:
        return int(os.environ.get(name, "1"))
    except ValueError:
        raise _not_of_torchrun() from None


def _not_of_torchrun() -> UsageError:
    names = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    found = ", ".join(f"{name}={os.environ[name]}" if name in os.environ else f"no {name}" for name in names)
    return UsageError(f"The environment is not torchrun's ({found}): start genie by torchrun, or unset WORLD_SIZE.")


def local_device(device: torch.device) -> torch.device:
    """The device of this process: under ``torchrun``, a bare ``cuda`` is one GPU per process.

    Raises:
        DeviceError: fewer GPUs than processes on this machine.
    """
    local = os.environ.get("LOCAL_RANK")
    if device.type != "cuda" or local is None:
        return device
    # The error is the same in all processes of this machine, and each finds it: the first one prints it.
    count = torch.cuda.device_count()
    if device.index is not None and processes_here() > 1:
        raise DeviceError(f"Device '{device}' is one GPU for {processes_here()} processes: use --device cuda.")
    if processes_here() > count:
        raise DeviceError(f"This machine has {count} GPU(s) and more processes: use --nproc-per-node {count}.")
    device = torch.device("cuda", int(local)) if device.index is None else device
    torch.cuda.set_device(device)
    return device


@contextmanager
def _lost_peers_named() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:
        # The first sentence of gloo's message, without the place in gloo's source.
        reason = re.sub(r"^\[\S+:\d+\] ", "", str(error).partition("\n")[0]).partition(". ")[0].rstrip(".")
        raise WorkerError(
            f"Another process of this run has ended or cannot be reached; its own message says why ({reason})."
        ) from None
