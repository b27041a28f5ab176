"""Ctrl-C waits for the end of a step; a second one does not."""

from __future__ import annotations

import signal
import threading

import pytest

from genie_cli.runtime import interrupts
from genie_cli.runtime.distribution import SOLO
from genie_cli.runtime.interrupts import Interrupts


def test_an_interrupt_is_held_until_it_is_looked_at() -> None:
    asked, before = Interrupts(), signal.getsignal(signal.SIGINT)
    with asked.held():
        assert not asked.agreed(SOLO)
        signal.raise_signal(signal.SIGINT)
        assert asked.is_asked
        assert asked.agreed(SOLO)
        signal.raise_signal(signal.SIGINT)  # the same Ctrl-C once more, as torchrun hands it on
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_ends_the_work_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_FORWARDED_WITHIN", 0.0)
    asked, before = Interrupts(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), asked.held():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_of_the_work_an_interrupt_ends_it_at_once() -> None:
    asked = Interrupts()
    with asked.held():
        pass
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert not asked.is_asked


def test_ignored_interrupts_stay_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts().held() as held:
            assert held is None
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_holds_nothing() -> None:
    seen = []

    def work() -> None:
        with Interrupts().held():
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
