"""Steps that are replayed as a list of operations learn what the others learn, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genie_cli.config import InputSpec, QuantizeConfig
from genie_cli.errors import NumbersError
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.quantization.presets import preset_options
from genie_cli.quantization.quantize import QuantizedNetwork
from genie_cli.runtime.operation_list import Recording
from genie_cli.runtime.progress import Event, Note, silent
from tests.support import intervals, stages, units
from tests.support.networks import CellNet, plain_input
from tests.support.recipes import MINMAX_RANGES

IMAGES = torch.randn(24, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Calls of replays, one number for each recording; all kinds of steps are recorded from two steps on."""
    intervals.record_from(monkeypatch, 2)
    counts: list[int] = []
    make = Recording.replay

    def counted(self: Recording) -> Any:
        replay, at = make(self), len(counts)
        counts.append(0)

        def count(*inputs: Tensor) -> None:
            counts[at] += 1
            replay(*inputs)

        return count

    monkeypatch.setattr(Recording, "replay", counted)
    return counts


def quantize(
    teacher: Teacher,
    dtype: torch.dtype = torch.float32,
    events: list[Event] | None = None,
    log_every: int | None = None,
    **options: Any,
) -> QuantizedNetwork:
    config = QuantizeConfig(
        **{"weight_bits": 2, "activation_bits": 4, "num_steps": 30, "batch_size": 8, **MINMAX_RANGES, **options}
    )
    report = silent if events is None else events.append
    return stages.quantize(
        teacher, IMAGES[:, : teacher.input.num_channels], config, dtype=dtype, report=report, log_every=log_every
    )


def same(one: QuantizedNetwork, other: QuantizedNetwork) -> bool:
    def tensors(network: QuantizedNetwork) -> list[Tensor]:
        weights = [tensor for weight in network.weights.values() for tensor in (weight.codes, weight.scale)]
        return [*weights, *(activation.step_size for activation in network.activations.values())]

    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


class Pooled(nn.Module):
    """Max pooling, a concatenation, a hard activation and a grouped convolution in one unit."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1, groups=4)
        self.pool, self.act = nn.MaxPool2d(3, 2, 1), nn.Hardswish()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.stem(x)))
        x = self.act(torch.cat([self.left(x), self.right(x)], 1))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def pooled() -> Teacher:
    torch.manual_seed(0)
    return make_teacher("pooled", Pooled().eval(), InputSpec(num_channels=1, size=16, mean=(0.0,), std=(1.0,)))


@pytest.fixture(scope="module")
def cells() -> Teacher:
    return make_teacher("cells", CellNet(num_channels=1), plain_input(1, 16))


SETTINGS: dict[str, dict[str, Any]] = {
    "genie-m": {},
    "nothing-dropped": {"drop_prob": 0.0},
    "adaquant": preset_options("adaquant"),
    "lsq": preset_options("lsq"),
    "whole-network-kl": {"unit": "network", "loss": "kl"},
    "layer": {"unit": "layer"},
    "step-sizes-fixed": {"weight_step_lr": 0.0, "activation_step_lr": 0.0},
    "patience": {"patience": 10, "holdout": 0.25},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *(("pooled", setting) for setting in SETTINGS),
        *((name, setting) for name in ("digits_teacher", "cells") for setting in ("genie-m", "layer")),
    ],
)
def test_recorded_steps_learn_the_same_bits(
    name: str,
    setting: str,
    dtype: torch.dtype,
    replays: list[int],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
):
    teacher = request.getfixturevalue(name)
    options = {**SETTINGS[setting], "num_steps": 30, "max_unit_layers": 5}  # cells are cut where several tensors cross
    events: list[Event] = []
    recorded = quantize(teacher, dtype, events, **options)
    num_recordings = len(replays)
    assert num_recordings > 0 and sum(replays) > 0.5 * 30 * len(recorded.units)
    assert not [event for event in events if isinstance(event, Note)]
    intervals.record_from(monkeypatch, intervals.NEVER)
    assert same(recorded, quantize(teacher, dtype, **options))
    assert len(replays) == num_recordings


def test_few_steps_are_not_recorded(digits_teacher: Teacher, replays: list[int], monkeypatch: pytest.MonkeyPatch):
    intervals.record_from(monkeypatch, 20)
    network = quantize(digits_teacher, num_steps=30, warmup=0.2)  # 6 without the regularizer, 24 with it
    assert replays == [22] * len(network.units)  # the first shows its masks, the second is recorded


def test_what_cannot_be_recorded_is_said_and_computed(
    digits_teacher: Teacher, replays: list[int], monkeypatch: pytest.MonkeyPatch
):
    whole = quantize(digits_teacher)
    replays.clear()

    def refuse(self: Recording) -> None:
        raise ValueError("an odd operation")

    monkeypatch.setattr(Recording, "replay", refuse)
    events: list[Event] = []
    assert same(whole, quantize(digits_teacher, events=events))
    notes = [event.message for event in events if isinstance(event, Note)]
    assert len(notes) == 2 * len(whole.units) and not replays
    assert all("are not recorded, and take longer: an odd operation" in note for note in notes)


def test_masks_that_are_made_anew_each_time_are_not_held_for_a_step(
    digits_teacher: Teacher, replays: list[int], monkeypatch: pytest.MonkeyPatch
):
    intervals.mask_pool(monkeypatch, 20_000)  # room for the masks of the last layers alone
    recorded = quantize(digits_teacher)
    assert 0 < len(replays) < 2 * len(recorded.units)
    intervals.record_from(monkeypatch, intervals.NEVER)
    assert same(recorded, quantize(digits_teacher))


def test_memory_that_runs_out_in_a_replay_ends_in_micro_batches(
    digits_teacher: Teacher, replays: list[int], monkeypatch: pytest.MonkeyPatch
):
    make = Recording.replay

    def failing(self: Recording) -> Any:
        make(self)

        def fail(*inputs: Tensor) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return fail

    monkeypatch.setattr(Recording, "replay", failing)
    events: list[Event] = []
    network = quantize(digits_teacher, events=events)
    notes = [event.message for event in events if isinstance(event, Note)]
    assert len(notes) == len(network.units) and all("micro-batches of 4" in note for note in notes)
    assert all(step.step_size.isfinite().all() for step in network.activations.values())


def test_bad_numbers_are_named_at_their_step_in_replays_too(
    digits_teacher: Teacher, replays: list[int], monkeypatch: pytest.MonkeyPatch
):
    units.spoil_targets(monkeypatch, "layer1", 17)
    with pytest.raises(NumbersError, match=r"Unit 'layer1': the loss is NaN or infinite at step 18"):
        quantize(digits_teacher, log_every=10)
    assert replays
