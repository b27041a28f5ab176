"""What tests see of, and do to, the learning of one unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor

from genie_cli.config import QuantizeConfig
from genie_cli.quantization import unit_learning
from genie_cli.quantization.quantize import _held_out_rows
from genie_cli.quantization.reconstruction import learn_unit
from genie_cli.quantization.unit_step import UnitStep
from genie_cli.quantization.unit_task import UnitTask

__all__ = [
    "Learn",
    "UnitTask",
    "around_each_unit",
    "held_out_rows",
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

    def stand_in(
        task: UnitTask, config: QuantizeConfig, device: torch.device, dtype: torch.dtype, on_step: Any, *others: Any
    ) -> int:
        def learn(task: UnitTask, listen: Callable[[int, float], None] = lambda step, loss: None) -> int:
            def both(step: int, loss: float) -> None:
                listen(step, loss)
                on_step(step, loss)

            return learn_unit(task, config, device, dtype, both, *others)

        return around(task, learn)

    monkeypatch.setattr(unit_learning, "learn_unit", stand_in)


def held_out_rows(num_images: int, config: QuantizeConfig) -> list[int]:
    """Rows that are never trained on."""
    return _held_out_rows(num_images, config).tolist()


def limit_memory(monkeypatch: pytest.MonkeyPatch, most: int, when: str = "forward") -> list[int]:
    """Let passes of more than `most` images run out of memory, forward or backward; sizes of those that did not."""
    seen: list[int] = []
    output = UnitStep.output

    def limited(step: UnitStep, inputs: Tensor) -> Tensor:
        result = output(step, inputs)
        if len(inputs) > most:
            if when == "forward":
                raise torch.OutOfMemoryError("CUDA out of memory")
            result.register_hook(refuse)
        else:
            seen.append(len(inputs))
        return result

    def refuse(gradient: Tensor) -> None:
        raise MemoryError

    monkeypatch.setattr(UnitStep, "output", limited)
    return seen


def keep_gradients(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """Gradients of all that learns, a list for each step that will be taken."""
    kept: list[list[Tensor]] = []
    sum_gradients = UnitStep._sum_gradients

    def keep(step: UnitStep) -> None:
        kept.append([p.grad.clone() for p in step._parameters.tensors() if p.grad is not None])
        sum_gradients(step)

    monkeypatch.setattr(UnitStep, "_sum_gradients", keep)
    return kept


def spoil_losses(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[str, int, torch.dtype], bool]) -> None:
    """Make loss and gradient NaN where `is_bad(unit, steps done, dtype)`."""
    reconstruction_loss = UnitStep.reconstruction_loss

    def spoiled(step: UnitStep, output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = reconstruction_loss(step, output, targets)
        if is_bad(step._task.name, int(step.num_finite), step._dtype):
            return loss * torch.nan, gradient * torch.nan
        return loss, gradient

    monkeypatch.setattr(UnitStep, "reconstruction_loss", spoiled)


def spoil_targets(monkeypatch: pytest.MonkeyPatch, unit: str, steps_done: int) -> None:
    """Make the targets of one step of a unit NaN."""
    call = UnitStep.__call__

    def spoiled(step: UnitStep, full: Tensor, quantized: Tensor, targets: Tensor, regularized: bool) -> None:
        is_bad = step._task.name == unit and int(step.num_finite) == steps_done
        call(step, full, quantized, targets * (torch.nan if is_bad else 1), regularized)

    monkeypatch.setattr(UnitStep, "__call__", spoiled)


def spoil_offsets(monkeypatch: pytest.MonkeyPatch, unit: str, steps_done: int) -> None:
    """Make the first step size of a unit NaN behind one of its steps, whose own loss is finite."""
    learn = UnitStep._learn

    def spoiled(step: UnitStep, *inputs: Any) -> None:
        learn(step, *inputs)
        if step._task.name == unit and int(step.num_finite) == steps_done:
            step._parameters.offsets.data[0] = torch.nan

    monkeypatch.setattr(UnitStep, "_learn", spoiled)
