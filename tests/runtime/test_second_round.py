"""A second round of work in the place of a first."""

from __future__ import annotations

from pathlib import Path

import torch

from genie_cli.runtime.distribution import SOLO
from genie_cli.runtime.work import Saved, SecondRound
from genie_cli.work.folder import WorkFolder


def saved(value: float) -> Saved:
    return Saved({"value": torch.tensor([value])}, {"step": int(value)})


def value_of(found: Saved | None) -> float | None:
    return None if found is None else float(found.tensors["value"])


def test_parts_that_are_the_same_are_those_of_the_first_round(tmp_path: Path) -> None:
    first = WorkFolder(tmp_path, interval=0)
    for number in range(3):
        first.finish(f"unit{number}", saved(number))
    second = SecondRound(first, lambda name: name == "unit0")
    assert [value_of(second.part(f"unit{number}")) for number in range(3)] == [0, None, None]
    second.save_checkpoint("unit1", saved(7), SOLO)
    assert value_of(second.checkpoint("unit1", SOLO)) == 7 and first.checkpoint("unit1", SOLO) is None
    assert second.is_due("unit1", SOLO)
    second.finish("unit1", saved(11))
    assert value_of(second.part("unit1")) == 11 and value_of(first.part("unit1")) == 1
    assert second.checkpoint("unit1", SOLO) is None
