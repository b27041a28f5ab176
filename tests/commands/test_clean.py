"""``genie clean``: lists what killed runs left, deletes it when asked, and leaves the rest alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genie_cli.runtime.work import Saved
from genie_cli.work.folder import ROOT, WorkFolder, open_work_folder
from genie_cli.work.lock import locked


def left_behind(out: str, command: str, parts: int) -> WorkFolder:
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    work = open_work_folder(Path(out), {"command": command})
    for i in range(parts):
        work.finish(f"part{i}", Saved({"x": torch.ones(1000)}, {}))
    return work


@pytest.fixture
def works() -> list[WorkFolder]:
    return [left_behind("a/images.safetensors", "synthesize", 2), left_behind("b/c/quantized", "quantize", 1)]


def rows(text: str) -> dict[str, list[str]]:
    lines = [line.replace("│", " ").replace("|", " ").split() for line in text.splitlines()]
    return {line[0]: line[1:] for line in lines if line and "/" in line[0]}


def test_listing_changes_nothing(genie: Any, works: list[WorkFolder]) -> None:
    before = sorted(Path().rglob("*"))
    found = rows(genie("clean").stdout)
    assert {name: (row[0], row[1], row[-1]) for name, row in found.items()} == {
        "a/images.safetensors": ("synthesize", "2", "left"),
        "b/c/quantized": ("quantize", "1", "left"),
    }
    assert sorted(Path().rglob("*")) == before


def test_removing_leaves_outputs_and_other_folders(genie: Any, works: list[WorkFolder]) -> None:
    Path("a/images.safetensors").write_bytes(b"an output")
    Path("a", ROOT, "mine.txt").write_bytes(b"of somebody else")
    assert [row[-1] for row in rows(genie("clean", "--remove").stdout).values()] == ["removed", "removed"]
    assert not any(work.path.exists() for work in works)
    assert Path("a/images.safetensors").read_bytes() == b"an output"
    assert Path("a", ROOT, "mine.txt").read_bytes() == b"of somebody else"
    assert not Path("b/c", ROOT).exists()
    assert "No unfinished runs" in genie("clean").stdout


def test_a_run_at_work_is_left(genie: Any, works: list[WorkFolder]) -> None:
    with locked(Path("a/images.safetensors")):
        found = rows(genie("clean", "--remove").stdout)
    assert found["a/images.safetensors"][-2:] == ["in", "use"]
    assert [work.path.exists() for work in works] == [True, False]


def test_one_folder_only(genie: Any, works: list[WorkFolder]) -> None:
    genie("clean", "b", "--remove")
    assert [work.path.exists() for work in works] == [True, False]


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b'{"out": "../../x", "command": "[red]y"}'])
def test_a_damaged_or_hostile_description(genie: Any, works: list[WorkFolder], content: bytes) -> None:
    Path("x").write_bytes(b"kept")
    (works[0].path / "about.json").write_bytes(content)
    text = genie("clean", "--remove").stdout
    assert text.count("removed") == 2
    assert Path("x").read_bytes() == b"kept"


def test_links_are_not_followed(genie: Any, works: list[WorkFolder], tmp_path: Path) -> None:
    elsewhere = works[0].path.rename(tmp_path / "elsewhere")
    works[0].path.symlink_to(elsewhere)
    genie("clean", "--remove")
    assert (elsewhere / "about.json").exists()


def test_a_link_to_other_runs_is_not_followed(genie: Any, works: list[WorkFolder], tmp_path: Path) -> None:
    elsewhere = works[0].path.parent.rename(tmp_path / "elsewhere")
    Path("a", ROOT).symlink_to(elsewhere)
    assert "a/images" not in genie("clean", "--remove").stdout
    assert (elsewhere / works[0].path.name / "about.json").exists()
