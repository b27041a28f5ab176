"""Held-out images and early stopping."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from genie_cli.config import QuantizeConfig
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.quantize import QuantizedNetwork
from genie_cli.quantization.reconstruction.batches import held_out_share
from genie_cli.quantization.reconstruction.early_stopping import EarlyStopping
from tests.support import stages
from tests.support.networks import digit_images
from tests.support.recipes import MINMAX_RANGES
from tests.support.units import Learn, UnitTask, around_each_unit


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return digit_images(48)


def quantize(teacher: Teacher, images: Tensor, **options: Any) -> QuantizedNetwork:
    config = QuantizeConfig(**{"num_steps": 20, "weight_bits": 2, "activation_bits": 4, **MINMAX_RANGES, **options})
    return stages.quantize(teacher, images, config)


def test_patience_without_a_share_takes_one_and_nothing_else_does():
    assert held_out_share(QuantizeConfig()) == 0
    assert held_out_share(QuantizeConfig(patience=5)) == 0.125
    assert (
        held_out_share(QuantizeConfig(patience=5, holdout=0.25)) == held_out_share(QuantizeConfig(holdout=0.25)) == 0.25
    )


def test_held_out_images_are_never_trained_on(digits_teacher: Teacher, digits: Tensor, monkeypatch: pytest.MonkeyPatch):
    trained: list[set[int]] = []
    held: list[set[int]] = []

    def watched(task: UnitTask, learn: Learn) -> int:
        rows: set[int] = set()
        (targets,) = task.data.targets
        gather = targets.gather
        monkeypatch.setattr(targets, "gather", lambda chosen: rows.update(chosen.tolist()) or gather(chosen))
        taken = learn(task)
        trained.append(rows)
        held.append(set(task.data.held_out.tolist()))
        return taken

    around_each_unit(monkeypatch, watched)
    network = quantize(digits_teacher, digits, holdout=0.25, batch_size=8)
    assert all(len(rows) == 12 and rows == held[0] for rows in held)
    assert all(rows == set(range(48)) - held[0] for rows in trained)
    assert all(unit.held_out_error is not None and unit.held_out_error > 0 for unit in network.units)
    assert [unit.num_steps for unit in network.units] == [20] * 5


def test_without_a_share_nothing_is_held_out(digits_teacher: Teacher, digits: Tensor):
    network = quantize(digits_teacher, digits[:8], num_steps=2)
    assert all(unit.held_out_error is None for unit in network.units)


def test_a_settled_unit_ends_early_at_its_best(
    digits_teacher: Teacher, digits: Tensor, monkeypatch: pytest.MonkeyPatch
):
    """With rates of zero nothing improves after the first look."""
    rates = {"weight_step_lr": 0.0, "activation_step_lr": 0.0, "rounding_lr": 0.0}
    network = quantize(digits_teacher, digits, num_steps=200, patience=4, warmup=0.1, **rates)
    # looks every 2 steps behind the warm-up of 20: the first at 22, the end 4 steps on
    assert [unit.num_steps for unit in network.units] == [26] * 5


def test_a_unit_that_improves_goes_on(digits_teacher: Teacher, digits: Tensor):
    options = {"rounding_lr": 0.05, "patience": 40, "warmup": 0.0}
    network = quantize(digits_teacher, digits, num_steps=100, **options)
    assert max(unit.num_steps for unit in network.units) > 40


def test_the_best_state_is_kept_and_small_gains_do_not_count():
    stopping = EarlyStopping(QuantizeConfig(num_steps=100, patience=6, warmup=0.0), 50)
    assert [step for step in range(1, 10) if stopping.is_due(step)] == [3, 6, 9]
    losses = {3: 1.0, 6: 0.5, 9: 0.4999, 12: 0.6}
    over = [stopping.is_over(step, loss, lambda s=step: [torch.tensor(s)]) for step, loss in losses.items()]
    assert over == [False, False, False, True]
    assert stopping.best is not None and stopping.best[0] == 6
