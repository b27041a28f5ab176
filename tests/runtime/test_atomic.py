"""Files and folders appear wholly or not at all, and nobody's files are deleted."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genie_cli.errors import InputError
from genie_cli.runtime import atomic
from genie_cli.runtime.atomic import (
    atomic_write_bytes,
    atomic_write_files,
    atomic_write_folder,
    atomic_write_text,
    check_writable,
)

OLD = {"weights.safetensors": b"old weights", "metrics.json": b"{}"}
NEW = {"weights.safetensors": b"new weights", "step_sizes.safetensors": b"steps", "metrics.json": b"[]"}
FILES = tuple(NEW)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def fail_at(call: int, function: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    """The function, of which one call raises instead."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return function(*args, **kwargs)

    return wrapped


def test_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    atomic_write_bytes(path, b"one")
    atomic_write_bytes(path, b"two")
    assert content(tmp_path) == {"a.bin": b"two"}


def test_text_keeps_its_newlines(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "a.txt", "ä\n\r\n")
    assert (tmp_path / "a.txt").read_bytes() == "ä\n\r\n".encode()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_modes_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        atomic_write_bytes(tmp_path / "a", b"")
        atomic_write_folder(tmp_path / "b", NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "b" / "weights.safetensors").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == mode | (mode & 0o444) >> 2


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_interrupted_file_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, step, fail_at(1, getattr(os, step), error))
    with pytest.raises((KeyboardInterrupt, InputError)) as caught:
        atomic_write_bytes(path, b"new")
    assert content(tmp_path) == {"a.bin": b"old"}
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path} cannot be written: No space left on device: free some space there."


@pytest.mark.parametrize("failing", [1, 2])
def test_files_that_belong_together_are_replaced_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    both = {tmp_path / "a.bin": b"one", tmp_path / "b.json": b"two"}
    atomic_write_files(both)
    assert content(tmp_path) == {"a.bin": b"one", "b.json": b"two"}
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(atomic, "_write_new_file", fail_at(failing, atomic._write_new_file, full))
    with pytest.raises(InputError):
        atomic_write_files(dict.fromkeys(both, b"new"))
    assert content(tmp_path) == {"a.bin": b"one", "b.json": b"two"}


def test_folder_is_written_and_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "quantized"
    atomic_write_folder(folder, OLD)
    assert content(folder) == OLD
    atomic_write_folder(folder, NEW)
    assert content(folder) == NEW
    assert names(tmp_path) == ["quantized"]


def test_folder_takes_the_place_of_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "quantized").mkdir()
    atomic_write_folder(tmp_path / "quantized", NEW)
    assert content(tmp_path / "quantized") == NEW


@pytest.mark.parametrize(("step", "call"), [("fsync", 1), ("fsync", 2), ("rename", 1), ("rename", 2)])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_interrupted_folder_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, call: int, error: BaseException
) -> None:
    folder = tmp_path / "quantized"
    atomic_write_folder(folder, OLD)
    monkeypatch.setattr(os, step, fail_at(call, getattr(os, step), error))
    with pytest.raises((KeyboardInterrupt, InputError)):
        atomic_write_folder(folder, NEW)
    assert names(tmp_path) == ["quantized"]
    assert content(folder) == OLD


def test_what_came_into_the_folder_meanwhile_is_carried_over(tmp_path: Path) -> None:
    folder = tmp_path / "quantized"
    atomic_write_folder(folder, OLD)
    (folder / "notes.txt").write_bytes(b"mine")
    atomic_write_folder(folder, NEW)
    assert content(folder) == {**NEW, "notes.txt": b"mine"}
    assert names(tmp_path) == ["quantized"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path, folder: bool) -> None:
    cache, link = tmp_path / "cache", tmp_path / "link"
    if folder:
        atomic_write_folder(cache, OLD)
        link.symlink_to(cache)
        atomic_write_folder(link, NEW)
        assert content(cache) == OLD
        assert content(link) == NEW
    else:
        cache.write_bytes(b"old")
        link.symlink_to(cache)
        atomic_write_bytes(link, b"new")
        assert cache.read_bytes() == b"old"
        assert link.read_bytes() == b"new"
    assert names(tmp_path) == ["cache", "link"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
def test_folder_refuses_names_that_are_not_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        atomic_write_folder(tmp_path / "quantized", {name: b""})
    assert names(tmp_path) == []


def test_write_into_a_missing_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        atomic_write_bytes(tmp_path / "absent" / "a", b"")
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        atomic_write_folder(tmp_path / "absent" / "a", NEW)


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(InputError, match="not a regular file"):
        check_writable(Path(os.devnull))
    with pytest.raises(InputError, match="not a regular file"):
        atomic_write_bytes(Path(os.devnull), b"")


@pytest.mark.parametrize("folder", [False, True])
def test_check_passes_and_leaves_nothing(tmp_path: Path, folder: bool) -> None:
    check_writable(tmp_path / "new", FILES if folder else ())
    assert names(tmp_path) == []


def test_check_lets_our_own_results_be_replaced(tmp_path: Path) -> None:
    atomic_write_folder(tmp_path / "quantized", dict.fromkeys(FILES, b""))
    (tmp_path / "images.safetensors").write_bytes(b"old")
    check_writable(tmp_path / "quantized", FILES)
    check_writable(tmp_path / "images.safetensors")
    assert (tmp_path / "images.safetensors").read_bytes() == b"old"


@pytest.mark.parametrize("folder", [False, True])
def test_check_names_a_missing_parent(tmp_path: Path, folder: bool) -> None:
    out = tmp_path / "absent" / "out"
    with pytest.raises(InputError) as caught:
        check_writable(out, FILES if folder else ())
    assert str(caught.value) == (f"Output folder {out.parent} does not exist: create it or choose another --out.")


def test_check_refuses_a_folder_for_a_file_and_the_reverse(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="is a folder, and a file is to be written"):
        check_writable(tmp_path)
    with pytest.raises(InputError, match="is a file, and a folder is to be written"):
        check_writable(tmp_path / "file", FILES)
    with pytest.raises(InputError, match="does not exist"):
        check_writable(tmp_path / "file" / "below")


def test_check_refuses_a_folder_with_other_files(tmp_path: Path) -> None:
    atomic_write_folder(tmp_path / "quantized", OLD)
    (tmp_path / "quantized" / "thesis.tex").write_bytes(b"")
    with pytest.raises(InputError, match=r"did not write \(thesis\.tex\)"):
        check_writable(tmp_path / "quantized", FILES)


@pytest.mark.parametrize("name", [".", "absent/..", ""])
def test_check_refuses_the_current_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="current folder"):
        check_writable(Path(name), FILES)
    check_writable(Path("quantized"), FILES)
    check_writable(Path("images.safetensors"))


def test_check_really_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A read-only file system, which modes do not show.
    monkeypatch.setattr(os, "open", fail_at(1, os.open, OSError(errno.EROFS, "Read-only file system")))
    with pytest.raises(InputError, match="cannot be written: Read-only file system"):
        check_writable(tmp_path / "a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root ignores modes")
def test_check_sees_a_folder_without_permission(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        check_writable(locked / "a")


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("name", ["x" * 300, "a\0b"], ids=["long", "nul"])
def test_check_refuses_impossible_names(tmp_path: Path, name: str, folder: bool) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        check_writable(tmp_path / name, FILES if folder else ())


def test_a_failure_to_clean_up_does_not_fail_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "quantized"
    atomic_write_folder(folder, OLD)
    monkeypatch.setattr(Path, "iterdir", fail_at(1, Path.iterdir, OSError(errno.EIO, "Input/output error")))
    atomic_write_folder(folder, NEW)
    assert content(folder) == NEW


def test_a_mount_point_is_not_replaced() -> None:
    with pytest.raises(InputError, match="mount point"):
        check_writable(Path("/"), FILES)


def test_an_optional_file_of_an_older_run_is_not_carried_over(tmp_path: Path) -> None:
    atomic_write_folder(tmp_path / "f", {"a": b"1", "details": b"old"}, ("details",))
    (tmp_path / "f" / "notes").write_text("mine")
    atomic_write_folder(tmp_path / "f", {"a": b"2"}, ("details",))
    assert {file.name: file.read_bytes() for file in (tmp_path / "f").iterdir()} == {"a": b"2", "notes": b"mine"}
