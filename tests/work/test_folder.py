"""What a run has done so far: found again by what determines the result, believed only where it is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from genie_cli.errors import InputError
from genie_cli.runtime.distribution import SOLO
from genie_cli.runtime.work import NO_WORK, Saved
from genie_cli.work.folder import ROOT, WorkFolder, find_work_folders, open_work_folder

STATE = {"x": torch.arange(6.0), "counts": torch.tensor([2**40])}


def test_what_determines_the_result_names_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = open_work_folder(out, {"command": "quantize", "seed": 0})
    assert first.path.parent == tmp_path / ROOT
    assert open_work_folder(out, {"seed": 0, "command": "quantize"}).path == first.path
    others = [
        open_work_folder(out, {"command": "quantize", "seed": 1}),
        open_work_folder(tmp_path / "other", {"command": "quantize", "seed": 0}),
    ]
    assert len({first.path, *(other.path for other in others)}) == 3
    about = json.loads((first.path / "about.json").read_text())
    assert (about["out"], about["command"], about["seed"]) == ("out", "quantize", 0)


def test_parts_and_checkpoints_come_back_until_the_run_is_started_anew(tmp_path: Path) -> None:
    out = tmp_path / "out"
    work = open_work_folder(out, {})
    assert work.part("unit0") is None and work.checkpoint("unit1", SOLO) is None
    work.finish("unit0", Saved(STATE, {"loss": 0.5}))
    work.save_checkpoint("unit1", Saved(STATE, {"step": 3}), SOLO)
    again = open_work_folder(out, {})
    for saved, facts in ((again.part("unit0"), {"loss": 0.5}), (again.checkpoint("unit1", SOLO), {"step": 3})):
        assert saved is not None and saved.facts == facts
        assert saved.tensors.keys() == STATE.keys()
        assert all(torch.equal(saved.tensors[name], tensor) for name, tensor in STATE.items())
    assert (again.num_parts(), again.has_checkpoint()) == (1, True)
    assert again.num_bytes() == sum(file.stat().st_size for file in work.path.iterdir()) > 2 * 8 * 7

    fresh = open_work_folder(out, {}, fresh=True)
    assert fresh.path == work.path
    assert (fresh.num_parts(), fresh.has_checkpoint(), fresh.part("unit0")) == (0, False, None)


def test_a_part_takes_the_place_of_its_checkpoints(tmp_path: Path) -> None:
    work = open_work_folder(tmp_path / "out", {})
    for step in (1, 2):
        work.save_checkpoint("unit0", Saved(STATE, {"step": step}), SOLO)
    work.save_checkpoint("unit0.float32", Saved(STATE, {"step": 1}), SOLO)
    work.save_checkpoint("unit01", Saved(STATE, {"step": 1}), SOLO)
    work.finish("unit0", Saved(STATE, {}))
    assert sorted(file.name for file in work.path.iterdir()) == ["about.json", "unit0.part", "unit01.checkpoint0"]


@pytest.mark.parametrize("place", [-1, -30, 12])
def test_a_part_with_a_flipped_bit_counts_as_not_there(tmp_path: Path, place: int) -> None:
    work = open_work_folder(tmp_path / "out", {})
    work.finish("unit0", Saved(STATE, {"loss": 0.5}))
    file = work.path / "unit0.part"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    assert work.part("unit0") is None


def test_a_part_whose_facts_were_changed_counts_as_not_there(tmp_path: Path) -> None:
    work = open_work_folder(tmp_path / "out", {})
    work.finish("unit0", Saved(STATE, {"loss": 0.5}))
    file = work.path / "unit0.part"
    file.write_bytes(file.read_bytes().replace(b"0.5", b"0.6"))
    assert work.part("unit0") is None


def test_a_folder_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / ROOT).write_text("mine")
    with pytest.raises(InputError, match=rf"^Work folder {tmp_path / ROOT}/\w+ cannot be made: Not a directory\.$"):
        open_work_folder(tmp_path / "out", {})


def test_the_root_stays_while_a_neighbour_needs_it(tmp_path: Path) -> None:
    one, other = (open_work_folder(tmp_path / name, {}) for name in ("one", "other"))
    one.finish("unit0", Saved(STATE, {}))
    one.remove()
    assert not one.path.exists() and other.path.exists()
    other.remove()
    assert not (tmp_path / ROOT).exists()
    other.remove()  # a second time finds nothing to do


def test_folders_are_found_wherever_they_lie_and_links_are_not_followed(tmp_path: Path) -> None:
    here = open_work_folder(tmp_path / "out", {"command": "quantize"})
    (tmp_path / "a" / "b").mkdir(parents=True)
    below = open_work_folder(tmp_path / "a" / "b" / "images", {"command": "synthesize"})
    elsewhere = open_work_folder(tmp_path / "out", {"command": "elsewhere"})
    linked = tmp_path / "a" / ROOT
    linked.mkdir()
    (linked / "folder").symlink_to(elsewhere.path)
    (linked / "about").mkdir()
    (linked / "about" / "about.json").symlink_to(elsewhere.path / "about.json")
    found = dict(find_work_folders(tmp_path))
    assert found.keys() == {here.path, below.path, elsewhere.path}
    assert (found[here.path]["out"], found[here.path]["command"]) == ("out", "quantize")
    assert (found[below.path]["out"], found[below.path]["command"]) == ("images", "synthesize")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_folder_that_cannot_say_what_it_is_for_is_found_too(tmp_path: Path, content: bytes) -> None:
    work = open_work_folder(tmp_path / "out", {})
    (work.path / "about.json").write_bytes(content)
    assert find_work_folders(tmp_path) == [(work.path, {})]


def test_nothing_is_kept_without_a_folder() -> None:
    NO_WORK.finish("unit0", Saved(STATE, {}))
    NO_WORK.save_checkpoint("unit0", Saved(STATE, {"step": 1}), SOLO)
    assert (NO_WORK.part("unit0"), NO_WORK.checkpoint("unit0", SOLO), NO_WORK.is_due("unit0", SOLO)) == (
        None,
        None,
        False,
    )


@pytest.mark.parametrize(("interval", "is_due"), [(0, True), (1e9, False)])
def test_a_checkpoint_is_due_after_the_interval(tmp_path: Path, interval: float, is_due: bool) -> None:
    assert WorkFolder(tmp_path, interval).is_due("unit0", SOLO) == is_due


def test_parts_that_are_worked_on_in_turns_keep_states_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("genie_cli.work.folder.time.monotonic", lambda: now[0])
    work = WorkFolder(tmp_path, interval=10)
    assert not work.is_due("a", SOLO) and not work.is_due("b", SOLO)
    now[0] = 10.0
    assert work.is_due("a", SOLO)
    work.save_checkpoint("a", Saved(STATE, {"step": 1}), SOLO)
    assert not work.is_due("a", SOLO) and work.is_due("b", SOLO)
    for step in (1, 2, 3):
        work.save_checkpoint("b", Saved(STATE, {"step": step}), SOLO)
    work.save_checkpoint("a", Saved(STATE, {"step": 2}), SOLO)
    assert {path.name for path in tmp_path.iterdir()} == {f"{n}.checkpoint{slot}" for n in "ab" for slot in (0, 1)}
    steps = {name: saved.facts["step"] for name in "ab" if (saved := work.checkpoint(name, SOLO)) is not None}
    assert steps == {"a": 2, "b": 3}
