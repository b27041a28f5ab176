"""Ctrl-C during long work: it waits for the end of a step, so that what was done can be kept."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from genie_cli.runtime.distribution import Workers

_FORWARDED_WITHIN = 1.0
"""Seconds in which a second signal is the same Ctrl-C: a terminal sends it to every process, torchrun sends it on."""


class Interrupts:
    """The interrupts of a run: the first one is looked at between steps, a second one ends the process at once.

    Attributes:
        is_asked: True once this process was interrupted.
    """

    def __init__(self) -> None:
        """Nobody has interrupted yet."""
        self.is_asked = False
        self._asked_at = 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Around work that looks at `is_asked` or `agreed` between its steps, and ends when it finds it true.

        Outside of it an interrupt ends the work where it is. Nothing is held in threads, nor where interrupts are
        ignored.

        Raises:
            KeyboardInterrupt: a second interrupt.
        """
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(before):
            yield
            return

        def on_signal(number: int, frame: FrameType | None) -> None:
            now = time.monotonic()
            if self.is_asked and now - self._asked_at >= _FORWARDED_WITHIN:
                before(number, frame)
            elif not self.is_asked:
                self.is_asked, self._asked_at = True, now

        signal.signal(signal.SIGINT, on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def agreed(self, workers: Workers) -> bool:
        """True in all processes of a part of the work, which all ask, once the first of them was interrupted."""
        if workers.size == 1:
            return self.is_asked
        return bool(workers.sum_(torch.tensor(float(self.is_asked and workers.is_first))))
