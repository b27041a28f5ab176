"""Small facts in the user's cache folder: found again by what they depend on, and never missed where they are lost."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from genie_cli.runtime.user_cache import cache_folder, keep, recall

ABOUT = {"torch": "2.15.0", "threads": 2, "limit": None}
VALUE = {"seconds": 0.25}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "genie"


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_a_value_is_found_by_all_that_it_depends_on(folder: Path):
    assert recall("speed", ABOUT) is None
    keep("speed", ABOUT, VALUE)
    assert recall("speed", ABOUT) == VALUE
    assert recall("speed", dict(reversed(ABOUT.items()))) == VALUE
    assert recall("speed", {**ABOUT, "threads": 4}) is None
    assert recall("other", ABOUT) is None
    keep("speed", {**ABOUT, "threads": 4}, 7)
    assert recall("speed", ABOUT) == VALUE
    keep("speed", ABOUT, 8)
    assert recall("speed", ABOUT) == 8
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"value": 1}', b'{"about": {}, "value": 1}', b"[" * 100_000],
    ids=range(9),
)
def test_a_damaged_file_is_as_if_it_were_absent(folder: Path, content: bytes):
    keep("speed", ABOUT, VALUE)
    only_file(folder).write_bytes(content)
    assert recall("speed", ABOUT) is None
    keep("speed", ABOUT, VALUE)
    assert recall("speed", ABOUT) == VALUE


def test_a_folder_in_the_place_of_the_file_is_left_alone(folder: Path):
    keep("speed", ABOUT, VALUE)
    path = only_file(folder)
    path.unlink()
    path.mkdir()
    keep("speed", ABOUT, VALUE)
    assert recall("speed", ABOUT) is None
    assert path.is_dir() and only_file(folder) == path


def test_a_file_in_the_place_of_the_folder_keeps_nothing(folder: Path):
    folder.write_text("mine")
    keep("speed", ABOUT, VALUE)
    assert recall("speed", ABOUT) is None
    assert folder.read_text() == "mine"


def test_a_folder_that_cannot_be_written_keeps_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # root may write anywhere
    keep("speed", ABOUT, VALUE)
    monkeypatch.undo()
    assert not folder.exists() or not list(folder.iterdir())


def test_the_file_says_what_it_is(folder: Path):
    keep("speed", ABOUT, VALUE)
    assert only_file(folder).name.startswith("speed-")
    assert json.loads(only_file(folder).read_text()) == {"about": ABOUT, "value": VALUE}


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, "HOME/.cache/genie"),
        ("linux", {"XDG_CACHE_HOME": "/elsewhere"}, "/elsewhere/genie"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "HOME/.cache/genie"),
        ("linux", {"XDG_CACHE_HOME": ""}, "HOME/.cache/genie"),
        ("darwin", {}, "HOME/Library/Caches/genie"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/genie/Cache"),
        ("win32", {}, "HOME/AppData/Local/genie/Cache"),
    ],
)
def test_the_folder_is_where_the_system_keeps_caches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, environment: dict[str, str], expected: str
):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder() == Path(expected.replace("HOME", str(tmp_path)))


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder() is None
    keep("speed", ABOUT, VALUE)
    assert recall("speed", ABOUT) is None
