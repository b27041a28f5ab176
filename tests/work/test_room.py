"""Room on disks is looked at before the work, and a disk that is full anyway is named."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from genie_cli.errors import DiskFullError, InputError
from genie_cli.runtime.atomic import atomic_write_bytes, atomic_write_folder
from genie_cli.runtime.distribution import SOLO
from genie_cli.runtime.work import Saved
from genie_cli.work.folder import ROOT, WorkFolder, open_work_folder
from genie_cli.work.lock import locked
from genie_cli.work.room import DiskNeed, check_room

MIB = 1 << 20


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the free bytes of every disk, or of one folder alone; keeps the folders asked about."""
    asked: list[Path] = []

    def fix(everywhere: int, total: int = 1 << 40, **of: int) -> list[Path]:
        def disk_usage(path: Path) -> Any:
            asked.append(Path(path))
            return shutil._ntuple_diskusage(total, 0, of.get(Path(path).name, everywhere))  # type: ignore[attr-defined]

        monkeypatch.setattr(shutil, "disk_usage", disk_usage)
        return asked

    return fix


def test_too_little_room_names_folder_sizes_and_the_mend(free: Any, tmp_path: Path):
    asked = free(10 * MIB)
    with pytest.raises(InputError, match=r"has 10\.00 MiB of free space.*needs 21\.00 MiB.*another disk") as raised:
        check_room(tmp_path / "missing" / "out", DiskNeed(20 * MIB))
    assert str(tmp_path / "missing") in str(raised.value)
    assert asked == [tmp_path]  # the nearest folder there is


def test_what_an_earlier_run_left_counts_as_there(free: Any, tmp_path: Path):
    free(10 * MIB)
    check_room(tmp_path / "out", DiskNeed(20 * MIB), held=11 * MIB)
    with pytest.raises(InputError):
        check_room(tmp_path / "out", DiskNeed(20 * MIB), held=11 * MIB - 1)


def test_a_file_system_that_does_not_tell_is_not_refused(free: Any, tmp_path: Path):
    free(0, total=0)
    check_room(tmp_path / "out", DiskNeed(20 * MIB, 20 * MIB))


def test_a_file_system_that_cannot_be_asked_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[Path] = []

    def disk_usage(path: Path) -> Any:
        asked.append(Path(path))
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    check_room(tmp_path / "out", DiskNeed(1 << 60))
    assert asked == [tmp_path]


def test_room_for_activations_is_looked_at_where_they_go(free: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = tmp_path / "temporary"
    other.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(other))
    free(100 * MIB)
    check_room(tmp_path / "out", DiskNeed(60 * MIB, 30 * MIB))
    with pytest.raises(InputError, match=r"temporary has 100.*needs 126\.00 MiB.*same disk.*TMPDIR.*--memory-limit"):
        check_room(tmp_path / "out", DiskNeed(60 * MIB, 60 * MIB))  # each alone would fit

    real = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        found = real(path, **options)
        return os.stat_result([*found[:2], 12345 if path == other else found[2], *found[3:]])

    monkeypatch.setattr(Path, "stat", stat)
    check_room(tmp_path / "out", DiskNeed(60 * MIB, 60 * MIB))  # on two disks
    free(100 * MIB, temporary=10 * MIB)
    with pytest.raises(InputError, match=r"temporary has 10.*needs 63\.00 MiB there for activations.*TMPDIR"):
        check_room(tmp_path / "out", DiskNeed(60 * MIB, 60 * MIB))


def test_no_folder_for_temporary_files_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def gettempdir() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", gettempdir)
    check_room(tmp_path / "out", DiskNeed(1))
    with pytest.raises(InputError, match="TMPDIR"):
        check_room(tmp_path / "out", DiskNeed(1, 1))


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOSPC) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize(
    ("code", "mend"), [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "quota"), (errno.EFBIG, "ulimit -f")]
)
def test_a_full_disk_leaves_the_old_and_says_the_mend(
    code: int, mend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_bytes(b"old")
    atomic_write_folder(tmp_path / "folder", {"metrics.json": b"old"})
    fill_the_disk(monkeypatch, code)
    with pytest.raises(DiskFullError, match=mend):
        atomic_write_bytes(tmp_path / "file", b"new")
    with pytest.raises(DiskFullError, match=mend):
        atomic_write_folder(tmp_path / "folder", {"metrics.json": b"new"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"old"
    assert (tmp_path / "folder" / "metrics.json").read_bytes() == b"old"


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fill_the_disk(monkeypatch, errno.EIO)
    with pytest.raises(InputError) as raised:
        atomic_write_bytes(tmp_path / "file", b"new")
    assert not isinstance(raised.value, DiskFullError)


def test_a_checkpoint_without_room_warns_once_and_the_last_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    warnings: list[str] = []
    work = WorkFolder(tmp_path, interval=1000, warn=warnings.append)
    for step in (1, 2):
        work.save_checkpoint("unit", Saved({"x": torch.tensor([step])}, {"step": step}), SOLO)
    with monkeypatch.context() as full:
        fill_the_disk(full)
        work._last["unit"] = 0.0
        for step in (3, 4):
            work.save_checkpoint("unit", Saved({"x": torch.tensor([step])}, {"step": step}), SOLO)
        assert not work.is_due("unit", SOLO)  # it is not tried again at once
        with pytest.raises(DiskFullError):
            work.finish("unit", Saved({"x": torch.tensor([5])}, {}))
    (warning,) = warnings
    assert "goes on without" in warning and "free some space" in warning
    newest = WorkFolder(tmp_path).checkpoint("unit", SOLO)
    assert newest is not None and newest.tensors["x"].item() == 2
    work.save_checkpoint("unit", Saved({"x": torch.tensor([6])}, {"step": 6}), SOLO)
    newest = WorkFolder(tmp_path).checkpoint("unit", SOLO)
    assert newest is not None and newest.tensors["x"].item() == 6


def test_a_work_folder_without_room_is_not_left_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    fill_the_disk(monkeypatch)
    with pytest.raises(DiskFullError), locked(out):
        open_work_folder(out, {})
    assert not (tmp_path / ROOT).exists()


def test_a_lock_does_not_need_room_for_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write(descriptor: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "out"
    with monkeypatch.context() as full:
        full.setattr(os, "write", write)
        with locked(out), pytest.raises(InputError, match="another run"), locked(out):
            pass
    assert not (tmp_path / ROOT).exists()
