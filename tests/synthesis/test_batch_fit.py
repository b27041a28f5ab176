"""Synthesis that runs out of memory names a batch size that fits."""

from __future__ import annotations

import pytest
import torch

from genie_cli.config import SynthesizeConfig
from genie_cli.errors import DeviceError
from genie_cli.models.teacher import Teacher
from genie_cli.synthesis import distill
from genie_cli.synthesis.distill import synthesize_images

CPU = torch.device("cpu")


def limit(monkeypatch: pytest.MonkeyPatch, most: int, error: Exception) -> list[int]:
    """Steps of more than `most` images run out of memory; the sizes that were tried."""
    tried: list[int] = []
    images_and_loss = distill._Batch._images_and_loss

    def limited(batch: distill._Batch) -> tuple[torch.Tensor, torch.Tensor]:
        images, loss = images_and_loss(batch)
        tried.append(len(images))
        if len(images) > most:
            raise error
        return images, loss

    monkeypatch.setattr(distill._Batch, "_images_and_loss", limited)
    return tried


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_the_message_names_the_largest_half_of_a_half_that_fits(
    digits_teacher: Teacher, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    tried = limit(monkeypatch, 5, error)
    config = SynthesizeConfig(num_images=32, batch_size=16, num_steps=3)
    with pytest.raises(DeviceError, match=r"A batch of 16 images .* of cpu \(.* free\): --batch-size 4 does\."):
        synthesize_images(digits_teacher, config, CPU, torch.float32)
    assert tried == [16, 8, 4]


def test_a_named_size_does_fit(digits_teacher: Teacher, monkeypatch: pytest.MonkeyPatch):
    limit(monkeypatch, 5, MemoryError())
    config = SynthesizeConfig(num_images=8, batch_size=4, num_steps=3)
    assert len(synthesize_images(digits_teacher, config, CPU, torch.float32).images) == 8


def test_nothing_fits(digits_teacher: Teacher, monkeypatch: pytest.MonkeyPatch):
    tried = limit(monkeypatch, 1, MemoryError())
    config = SynthesizeConfig(num_images=7, batch_size=7, num_steps=1)
    with pytest.raises(DeviceError, match=r"A batch of 7 images .*: nor do two"):
        synthesize_images(digits_teacher, config, CPU, torch.float32)
    assert tried[0] == 7 and min(tried) > 1


def test_other_errors_are_not_taken_for_a_shortage(digits_teacher: Teacher, monkeypatch: pytest.MonkeyPatch):
    tried = limit(monkeypatch, 5, RuntimeError("shapes do not fit"))
    config = SynthesizeConfig(num_images=8, batch_size=8, num_steps=3)
    with pytest.raises(RuntimeError, match="shapes"):
        synthesize_images(digits_teacher, config, CPU, torch.float32)
    assert tried == [8]
