"""Steps that run out of memory are taken in pieces: the same gradients, losses and, nearly, the same network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx

from genie_cli.config import QuantizeConfig
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.quantize import QuantizedNetwork
from genie_cli.quantization.reconstruction.micro_batches import MicroBatches
from genie_cli.runtime.distribution import Workers
from genie_cli.runtime.progress import Event, Note
from genie_cli.runtime.work import NO_WORK, Saved, Work
from tests.support import intervals, stages, units
from tests.support.networks import digit_images

EXACT = {
    "drop_prob": 0.0, "weight_bits": 3, "activation_bits": 4, "num_steps": 8, "batch_size": 16,
    "weight_range": "minmax", "activation_range": "minmax",
}  # fmt: skip
"""Nothing is drawn within a step, nothing is searched for."""


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return digit_images(32)


@pytest.fixture
def events() -> list[Event]:
    return []


def quantize(
    teacher: Teacher,
    images: Tensor,
    events: list[Event],
    work: Work = NO_WORK,
    log_every: int | None = None,
    **options: Any,
) -> QuantizedNetwork:
    config = QuantizeConfig(**{**EXACT, **options})
    return stages.quantize(teacher, images, config, report=events.append, work=work, log_every=log_every)


def notes(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Note) and event.warning]


def distance(one: QuantizedNetwork, other: QuantizedNetwork) -> float:
    """Of the step sizes, relative; and the share of the codes that differ, if that is more."""
    worst = 0.0
    for name, weight in one.weights.items():
        twin = other.weights[name]
        worst = max(worst, float((weight.scale / twin.scale - 1).abs().max()))
        worst = max(worst, float((weight.codes != twin.codes).float().mean()))
    for name, activation in one.activations.items():
        worst = max(worst, abs(float(activation.step_size / other.activations[name].step_size) - 1))
    return worst


# the pieces


def test_pieces_cover_the_batch_with_shares_that_add_up():
    micro = MicroBatches(10, "unit", lambda event: None)
    batch = torch.arange(10)
    for count in (1, 2, 4, 8, 16):
        micro.count = count
        pieces = [(share, part) for share, (part, _) in micro.split(batch, batch)]
        assert torch.equal(torch.cat([part for _, part in pieces]), batch)
        assert all(share == pytest.approx(len(part) / 10) for share, part in pieces)
        assert max(len(part) for _, part in pieces) == -(-10 // count)


def test_a_whole_batch_is_handed_on_as_it_is():
    batch = torch.arange(4)
    ((share, (part,)),) = MicroBatches(4, "unit", lambda event: None).split(batch)
    assert part is batch and share == 1


def test_what_fails_behind_the_gradients_is_not_done_again():
    micro = MicroBatches(8, "unit", lambda event: None)

    tries = 0
    with pytest.raises(MemoryError):
        for attempt in micro.attempts():
            with attempt:
                tries += 1
                micro.gradients_are_made()
                raise MemoryError
    assert (tries, micro.count) == (1, 1)


# the mathematics


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """Those of each step."""
    return units.keep_gradients(monkeypatch)


@pytest.mark.parametrize(
    "options",
    [
        {"warmup": 0.0},  # the rounding regularizer from the first step on
        {"loss": "kl", "unit": "network"},
        {"rounding": "adaquant"},
        {"batch_size": 13},
    ],
    ids=lambda options: next(iter(options)),
)
def test_gradients_are_those_of_the_whole_batch(
    digits_teacher: Teacher, digits: Tensor, monkeypatch: pytest.MonkeyPatch, gradients: list[list[Tensor]],
    events: list[Event], options: dict[str, Any],
):  # fmt: skip
    options = {**options, "num_steps": 1}
    whole = quantize(digits_teacher, digits, events, **options)
    expected, gradients[:] = list(gradients), []
    assert not notes(events)
    seen = units.limit_memory(monkeypatch, 5)
    pieces = quantize(digits_teacher, digits, events, **options)
    assert max(seen) <= 5
    # the first unit: the others' inputs follow from what it came out as
    for own, wanted in zip(gradients[0], expected[0], strict=True):
        assert float((own - wanted).norm()) <= 1e-4 * float(wanted.norm())
    assert distance(pieces, whole) < 0.1


def test_dropping_and_early_stopping_go_on(
    digits_teacher: Teacher, digits: Tensor, monkeypatch: pytest.MonkeyPatch, events: list[Event]
):
    units.limit_memory(monkeypatch, 4)
    network = quantize(digits_teacher, digits, events, drop_prob=0.5, patience=4, warmup=0.0, holdout=0.3)
    assert all(0 < unit.relative_error < 1 for unit in network.units)


def test_one_image_that_does_not_fit_ends_the_run(
    digits_teacher: Teacher, digits: Tensor, monkeypatch: pytest.MonkeyPatch, events: list[Event]
):
    units.limit_memory(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        quantize(digits_teacher, digits, events, num_steps=1)


def test_a_unit_that_goes_on_keeps_its_micro_batches(
    digits_teacher: Teacher, digits: Tensor, monkeypatch: pytest.MonkeyPatch, events: list[Event]
):
    class Kept(Work):
        """The state of the first unit after 5 steps."""

        def __init__(self) -> None:
            self.saved: Saved | None = None
            self.resumes = False

        def is_due(self, name: str, workers: Workers) -> bool:
            return self.saved is None

        def save_checkpoint(self, name: str, saved: Saved, workers: Workers) -> None:
            self.saved = saved

        def checkpoint(self, name: str, workers: Workers) -> Saved | None:
            return self.saved if self.resumes and name == "unit0" else None

    work = Kept()
    units.limit_memory(monkeypatch, 4)
    options = {"drop_prob": 0.5}
    through = quantize(digits_teacher, digits, events, work=work, log_every=5, **options)
    assert work.saved is not None
    work.resumes = True
    events.clear()
    resumed = quantize(digits_teacher, digits, events, work=work, log_every=5, **options)
    assert distance(through, resumed) == 0
    assert not any("'conv1'" in note for note in notes(events)), "the first unit need not run out of memory again"


# where nothing is learned


def test_capture_and_calibration_find_the_same(
    digits_teacher: Teacher, digits: Tensor, monkeypatch: pytest.MonkeyPatch, events: list[Event]
):
    """A sample that is thinned out too goes on at a piece's end where it would have in the whole."""
    intervals.calibration_samples(monkeypatch, 3001)
    options = {"reconstruct": False, "activation_range": "search"}
    plain = quantize(digits_teacher, digits, events, **options)
    assert not notes(events)
    call = fx.GraphModule.__call__

    def limited(graph: fx.GraphModule, images: Tensor) -> Any:
        if len(images) > 3:
            raise MemoryError
        return call(graph, images)

    monkeypatch.setattr(fx.GraphModule, "__call__", limited)
    short = quantize(digits_teacher, digits, events, **options)
    assert distance(plain, short) < 1e-5
    assert notes(events) == ["32 images at once do not fit into memory: going on with fewer."]
