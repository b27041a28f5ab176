"""What a section works with: the device, its sizes and its deadline, and a place for its findings."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from genie_cli.runtime.arithmetic import choose_arithmetic
from genie_cli.runtime.device import resolve_device
from genie_cli.runtime.settings import configure_process

_LONGEST_ERROR = 1500
_T = TypeVar("_T")


class SkippedError(Exception):
    """A section or a part of one that cannot run here; the message says why."""


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line.

    Attributes:
        device: cpu or cuda.
        is_tiny: small sizes, to run through on a CPU.
        kits: folder of real networks and images; None: there is none.
    """

    device: str
    is_tiny: bool
    kits: Path | None


class Bench:
    """What a section works with, in its own process.

    Findings are lines of a file, written at once: those of a section that is ended are not lost.
    """

    def __init__(self, options: Options, seconds: float, findings: Path) -> None:
        """Prepare the process as the commands do.

        Args:
            options: of the command line.
            seconds: after so many the process is ended.
            findings: the file that they are written to.
        """
        self.options, self._findings = options, findings
        self._deadline = time.monotonic() + seconds
        self.device = resolve_device(options.device)
        configure_process(self.device, deterministic=True)
        self.dtype = choose_arithmetic("auto", self.device, "quantize").dtype
        if options.is_tiny:
            torch.set_num_threads(1)  # at such sizes, more wait for one another

    @property
    def is_cuda(self) -> bool:
        """True on a GPU."""
        return self.device.type == "cuda"

    def size(self, full: _T, tiny: _T) -> _T:
        """The size to work at."""
        return tiny if self.options.is_tiny else full

    def seconds_left(self) -> float:
        """Seconds to the deadline."""
        return self._deadline - time.monotonic()

    def require_cuda(self) -> None:
        """Leave the section, or the part, where there is no GPU.

        Raises:
            SkippedError: the device is a CPU.
        """
        if not self.is_cuda:
            raise SkippedError("needs CUDA")

    def synchronize(self) -> None:
        """Wait for a GPU."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def figure(self, name: str, value: Any) -> None:
        """Tell a figure: a JSON value; a float is kept to four digits."""
        self._tell("figure", name, _rounded(value))

    def check(self, name: str, has_passed: bool) -> None:
        """Tell what has to be true, and whether it is."""
        self._tell("check", name, bool(has_passed))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Around a part of the section: where it fails or is skipped, this is told and the next part goes on."""
        try:
            yield
        except SkippedError as reason:
            self._tell("skipped", name, str(reason))
        except Exception:
            self._tell("error", name, error_text())

    def _tell(self, kind: str, name: str, value: Any) -> None:
        with self._findings.open("a", encoding="utf-8") as file:
            file.write(json.dumps([kind, name, value]) + "\n")


def error_text() -> str:
    """The error that is being handled, with the innermost lines that led to it."""
    return traceback.format_exc(limit=-4).strip()[-_LONGEST_ERROR:]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
