"""One run an output: who holds it is said, and nothing of a lock is left behind."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from genie_cli.errors import InputError
from genie_cli.work.folder import ROOT
from genie_cli.work.lock import is_locked, locked

fcntl = pytest.importorskip("fcntl")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def lock_file(tmp_path: Path) -> Path:
    return tmp_path / ROOT / "out.lock"


def test_a_second_run_is_told_of_the_first(out: Path, lock_file: Path) -> None:
    with locked(out):
        assert lock_file.read_text() == str(os.getpid())
        with pytest.raises(InputError) as caught, locked(out):
            pass
        with locked(out.with_name("other")):
            pass
    holder = f"{out} is being written by another run (process {os.getpid()})"
    assert str(caught.value) == f"{holder}: wait until it ends, or choose another --out."
    assert not lock_file.parent.exists()


@pytest.mark.parametrize("text", ["", "no number", None])
def test_a_holder_without_a_number_is_not_named(out: Path, lock_file: Path, text: str | None) -> None:
    """The disk may have been full when it came to the number."""
    with locked(out):
        lock_file.write_bytes(b"\xff" if text is None else text.encode())
        with pytest.raises(InputError, match=r"by another run: wait"), locked(out):
            pass


def test_whether_it_is_locked(out: Path, lock_file: Path) -> None:
    assert not is_locked(out)
    with locked(out):
        assert is_locked(out)
        assert not is_locked(out.with_name("other"))
    assert not is_locked(out)
    assert not lock_file.parent.exists()


def test_what_a_killed_run_leaves_is_no_lock(out: Path, lock_file: Path) -> None:
    lock_file.parent.mkdir()
    lock_file.write_text("1")
    assert not is_locked(out)
    lock_file.parent.mkdir(exist_ok=True)
    lock_file.write_text("123456789012")
    with locked(out):
        assert lock_file.read_text() == str(os.getpid())


def test_a_lock_on_a_file_that_the_last_holder_took_away_is_none(
    out: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends between our opening of the file and our lock on it, and a third run makes the file anew."""
    opened: list[int] = []
    flock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        if not opened:
            lock_file.unlink()
        elif len(opened) == 1:
            lock_file.rename(lock_file.with_suffix(".old"))
            lock_file.touch()
        opened.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(out):
        assert len(opened) == 3
        assert os.path.samestat(os.fstat(opened[-1]), lock_file.stat())
        with pytest.raises(InputError, match="another run"), locked(out):
            pass
    for descriptor in set(opened):  # none of them stays open
        with pytest.raises(OSError) as caught:
            os.fstat(descriptor)
        assert caught.value.errno == errno.EBADF


def test_a_lock_that_cannot_be_made_says_why(out: Path, lock_file: Path, tmp_path: Path) -> None:
    lock_file.parent.write_text("mine")
    with pytest.raises(InputError) as caught, locked(out):
        pass
    assert str(caught.value) == f"Lock file {lock_file} cannot be made: File exists."
    assert (tmp_path / ROOT).read_text() == "mine"


def test_a_link_in_the_place_of_the_lock_is_not_followed(out: Path, lock_file: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    lock_file.parent.mkdir()
    lock_file.symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match=r"out\.lock cannot be made: Too many levels"), locked(out):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_system_without_such_locks_refuses_nobody(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with locked(out), locked(out):
        assert not is_locked(out)
        assert list(out.parent.iterdir()) == []
