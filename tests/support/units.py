"""What tests see of, and do to, the learning of one unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor

from genie_cli.quantization import quantize as quantization
from genie_cli.quantization.reconstruction.learner import UnitLearner
from genie_cli.quantization.reconstruction.reconstruct import reconstruct
from genie_cli.quantization.reconstruction.task import UnitTask

__all__ = [
    "Learn",
    "UnitTask",
    "around_each_unit",
    "keep_gradients",
    "limit_memory",
    "spoil_losses",
    "spoil_offsets",
    "spoil_targets",
]


class Learn(Protocol):
    """Learns one unit."""

    def __call__(self, task: UnitTask, listen: Callable[[int, float], None] = lambda step, loss: None) -> int:
        """Learn `task`, tell `listen` of steps and their losses, and return the steps taken."""
        ...


def around_each_unit(monkeypatch: pytest.MonkeyPatch, around: Callable[[UnitTask, Learn], int]) -> None:
    """Call `around(task, learn)` for each unit that is to be learned; it returns what `learn(task)` does."""

    def stand_in(task: UnitTask, *others: Any) -> int:
        *running, on_step, on_pace = others

        def learn(task: UnitTask, listen: Callable[[int, float], None] = lambda step, loss: None) -> int:
            def both(step: int, loss: float) -> None:
                listen(step, loss)
                on_step(step, loss)

            return reconstruct(task, *running, both, on_pace)

        return around(task, learn)

    monkeypatch.setattr(quantization, "reconstruct", stand_in)


def limit_memory(monkeypatch: pytest.MonkeyPatch, most: int, when: str = "forward") -> list[int]:
    """Let passes of more than `most` images run out of memory, forward or backward; sizes of those that did not."""
    seen: list[int] = []
    run = UnitLearner._outputs

    def limited(learner: UnitLearner, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = run(learner, *inputs)
        if len(inputs[0]) > most:
            if when == "forward":
                raise torch.OutOfMemoryError("CUDA out of memory")
            outputs[0].register_hook(refuse)
        else:
            seen.append(len(inputs[0]))
        return outputs

    def refuse(gradient: Tensor) -> None:
        raise MemoryError

    monkeypatch.setattr(UnitLearner, "_outputs", limited)
    return seen


def keep_gradients(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """Gradients of all that learns, a list for each step that will be taken."""
    kept: list[list[Tensor]] = []
    update = UnitLearner._update

    def keep(learner: UnitLearner) -> None:
        learned = learner._parameters.learned()
        kept.append([tensor.grad.clone() for tensor in learned if tensor.grad is not None])
        update(learner)

    monkeypatch.setattr(UnitLearner, "_update", keep)
    return kept


def spoil_losses(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[str, int, torch.dtype], bool]) -> None:
    """Make loss and gradient NaN where `is_bad(unit, steps done, dtype)`."""
    start = UnitLearner.__init__

    def spoiled(learner: UnitLearner, *args: Any, **options: Any) -> None:
        start(learner, *args, **options)
        compare, unit, dtype = learner._compare, learner._task.name, learner._context.dtype

        def compare_or_spoil(output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            loss, gradient = compare(output, targets)
            if is_bad(unit, int(learner._num_finite), dtype):
                return loss * torch.nan, gradient * torch.nan
            return loss, gradient

        learner._compare = compare_or_spoil

    monkeypatch.setattr(UnitLearner, "__init__", spoiled)


def spoil_targets(monkeypatch: pytest.MonkeyPatch, unit: str, steps_done: int) -> None:
    """Make the targets of one step of a unit NaN."""
    next_batch = UnitLearner.next_batch

    def spoiled(learner: UnitLearner) -> tuple[Tensor, ...]:
        *inputs, targets = next_batch(learner)
        is_bad = learner._task.name == unit and learner.steps_done == steps_done
        return *inputs, targets * (torch.nan if is_bad else 1)

    monkeypatch.setattr(UnitLearner, "next_batch", spoiled)


def spoil_offsets(monkeypatch: pytest.MonkeyPatch, unit: str, steps_done: int) -> None:
    """Make the first step size of a unit NaN behind one of its steps, whose own loss is finite."""
    optimize = UnitLearner._optimize

    def spoiled(learner: UnitLearner, *inputs: Any) -> None:
        optimize(learner, *inputs)
        if learner._task.name == unit and int(learner._num_finite) == steps_done:
            learner._parameters.offsets.data[0] = torch.nan

    monkeypatch.setattr(UnitLearner, "_optimize", spoiled)
