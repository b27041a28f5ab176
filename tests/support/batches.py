"""What tests do to the synthesis of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from genie_cli.synthesis import distill


def spoil_losses(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[int, torch.dtype], bool]) -> None:
    """Make the loss NaN where `is_bad(steps done, dtype)`."""
    images_and_loss = distill.Batch._images_and_loss

    def spoiled(batch: distill.Batch) -> tuple[Tensor, Tensor]:
        images, loss = images_and_loss(batch)
        return images, loss * (torch.nan if is_bad(int(batch._step_index), batch._context.dtype) else 1)

    monkeypatch.setattr(distill.Batch, "_images_and_loss", spoiled)


def limit_memory(monkeypatch: pytest.MonkeyPatch, most: int, error: Exception) -> list[int]:
    """Let steps of more than `most` images end in `error`; the sizes that are tried."""
    tried: list[int] = []
    images_and_loss = distill.Batch._images_and_loss

    def limited(batch: distill.Batch) -> tuple[Tensor, Tensor]:
        images, loss = images_and_loss(batch)
        tried.append(len(images))
        if len(images) > most:
            raise error
        return images, loss

    monkeypatch.setattr(distill.Batch, "_images_and_loss", limited)
    return tried


def limit_number_alive(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let the start of a batch run out of memory where `most` others are not finished."""
    alive: list[distill.Batch] = []
    start, finish = distill.Batch.__init__, distill.Batch.finish

    def limited(batch: distill.Batch, *args: Any, **options: Any) -> None:
        alive.append(batch)
        if len(alive) > most:
            alive.clear()
            raise torch.OutOfMemoryError("CUDA out of memory")
        start(batch, *args, **options)

    def finished(batch: distill.Batch) -> Any:
        alive.pop()
        return finish(batch)

    monkeypatch.setattr(distill.Batch, "__init__", limited)
    monkeypatch.setattr(distill.Batch, "finish", finished)
