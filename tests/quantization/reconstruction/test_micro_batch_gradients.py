"""Each step that is taken in micro-batches has the gradients of the whole batch, where the learning stands.

Learned networks as a whole cannot be compared within a bound: the sums round differently, a value then comes to lie on
the next grid point, and the units behind learn from other inputs. A step is compared with one from the same state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from genie_cli.config import ModelConfig, QuantizeConfig
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_teacher
from genie_cli.quantization.plan import make_plan
from genie_cli.quantization.quantize import quantize_network
from genie_cli.quantization.reconstruction.learner import UnitLearner
from genie_cli.quantization.reconstruction.micro_batches import MicroBatches
from genie_cli.quantization.result import QuantizedNetwork
from genie_cli.runtime.context import RunContext
from genie_cli.runtime.progress import Event, Note
from tests.support import CPU
from tests.support.networks import digit_images

MOST, STEPS, BATCH = 4, 8, 16
"""Images that fit into memory, steps of a unit, images of a batch."""
BOUND = 0.05
"""Of the gradients' norm. Rounding changes them by a millionth, a value that comes to lie on the next grid point by
less than a hundredth, and a part that is lost by a quarter."""


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher(ModelConfig(name="digits_resnet"))


class Compared:
    """Learners that take each step twice: as a whole from the same state, and then in parts, which is kept.

    Attributes:
        distances: of each step, that of the gradients from the whole batch's, as a share of their norm.
        sizes: images in each part.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
        self.distances, self.sizes = list[float](), list[int]()
        self._when, self._is_unlimited = when, False
        self._optimize, self._outputs = UnitLearner._optimize, UnitLearner._outputs
        monkeypatch.setattr(UnitLearner, "_optimize", lambda *call: self._both(*call))
        monkeypatch.setattr(UnitLearner, "_outputs", lambda *call: self._limited(*call))

    def _both(self, learner: UnitLearner, regularized: bool, *batch: Tensor) -> None:
        with self._unlimited(learner):
            self._optimize(learner, regularized, *batch)
            whole = _gradients(learner)
        update = learner._update

        def compare() -> None:
            own = _gradients(learner)
            self.distances.append(float((own - whole).norm() / whole.norm()))
            update()

        with _replaced(learner, "_update", compare):
            self._optimize(learner, regularized, *batch)

    @contextmanager
    def _unlimited(self, learner: UnitLearner) -> Iterator[None]:
        """As a whole, without a step of the optimizer, and with nothing counted."""
        count, num_finite = learner.micro_batches.count, learner._num_finite.clone()
        learner.micro_batches.count, self._is_unlimited = 1, True
        with _replaced(learner, "_update", lambda: None):
            yield
        learner.micro_batches.count, self._is_unlimited = count, False
        learner.micro_batches._has_gradients = False
        learner._num_finite.copy_(num_finite)

    def _limited(self, learner: UnitLearner, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs, size = self._outputs(learner, *inputs), len(inputs[0])
        if self._is_unlimited:
            return outputs
        if size <= MOST:
            self.sizes.append(size)
        elif self._when == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory")
        else:
            outputs[0].register_hook(_refuse)
        return outputs


def _refuse(gradient: Tensor) -> None:
    raise MemoryError


@contextmanager
def _replaced(learner: UnitLearner, name: str, stand_in: object) -> Iterator[None]:
    setattr(learner, name, stand_in)
    try:
        yield
    finally:
        delattr(learner, name)


def _gradients(learner: UnitLearner) -> Tensor:
    return torch.cat([tensor.grad.flatten() for tensor in learner._parameters.learned()])


def learn(teacher: Teacher, events: list[Event], **options: object) -> QuantizedNetwork:
    config = QuantizeConfig(
        weight_bits=3, num_steps=STEPS, batch_size=BATCH, drop_prob=0.0, weight_range="minmax",
        activation_range="minmax", **options,
    )  # fmt: skip
    context = RunContext.alone(CPU, torch.float32, events.append)
    return quantize_network(make_plan(teacher, config, CPU), digit_images(32), context)


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("options", [{}, {"loss": "kl", "unit": "network"}, {"rounding": "adaquant"}], ids=str)
def test_each_step_has_the_gradients_of_the_whole_batch(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch, when: str, options: dict[str, object]
):
    compared, events = Compared(monkeypatch, when), list[Event]()
    network = learn(teacher, events, **options)
    units = len(network.units)
    assert len(compared.distances) == STEPS * units
    assert max(compared.distances) < BOUND
    assert compared.sizes == [MOST] * (BATCH // MOST * STEPS * units)


def test_a_unit_finds_the_size_that_fits_once(teacher: Teacher, monkeypatch: pytest.MonkeyPatch):
    events = list[Event]()
    Compared(monkeypatch, "forward")
    units = len(learn(teacher, events).units)
    warnings = [event.message for event in events if isinstance(event, Note) and event.warning]
    # twice a unit: micro-batches of 8, then of 4, at which it stays
    assert len(warnings) == 2 * units
    assert "a step of 16 images does not fit" in warnings[0] and "micro-batches of 4" in warnings[1]


def test_a_lost_part_would_be_seen(teacher: Teacher, monkeypatch: pytest.MonkeyPatch):
    """The bound tells rounding from a mistake."""
    compared = Compared(monkeypatch, "forward")
    whole = MicroBatches.split

    def losing(self: MicroBatches, *tensors: Tensor) -> Iterator[tuple[float, tuple[Tensor, ...]]]:
        parts = list(whole(self, *tensors))
        yield from parts if len(parts) == 1 else parts[:-1]

    monkeypatch.setattr(MicroBatches, "split", losing)
    learn(teacher, [])
    assert min(compared.distances) > BOUND
