"""Synthesis that runs out of memory names a batch size that fits."""

from __future__ import annotations

import pytest
import torch

from genie_cli.config import SynthesizeConfig
from genie_cli.errors import DeviceError
from genie_cli.models.teacher import Teacher
from tests.support.batches import limit_memory
from tests.support.stages import synthesize


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_the_message_names_the_largest_half_of_a_half_that_fits(
    digits_teacher: Teacher, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    tried = limit_memory(monkeypatch, 5, error)
    config = SynthesizeConfig(num_images=32, batch_size=16, num_steps=3)
    with pytest.raises(DeviceError, match=r"A batch of 16 images .* of cpu \(.* free\): --batch-size 4 does\."):
        synthesize(digits_teacher, config)
    assert tried == [16, 8, 4]


def test_a_named_size_does_fit(digits_teacher: Teacher, monkeypatch: pytest.MonkeyPatch):
    limit_memory(monkeypatch, 5, MemoryError())
    config = SynthesizeConfig(num_images=8, batch_size=4, num_steps=3)
    assert len(synthesize(digits_teacher, config).images) == 8


def test_nothing_fits(digits_teacher: Teacher, monkeypatch: pytest.MonkeyPatch):
    tried = limit_memory(monkeypatch, 1, MemoryError())
    config = SynthesizeConfig(num_images=7, batch_size=7, num_steps=1)
    with pytest.raises(DeviceError, match=r"A batch of 7 images .*: nor do two"):
        synthesize(digits_teacher, config)
    assert tried[0] == 7 and min(tried) > 1


def test_other_errors_are_not_taken_for_a_shortage(digits_teacher: Teacher, monkeypatch: pytest.MonkeyPatch):
    tried = limit_memory(monkeypatch, 5, RuntimeError("shapes do not fit"))
    config = SynthesizeConfig(num_images=8, batch_size=8, num_steps=3)
    with pytest.raises(RuntimeError, match="shapes"):
        synthesize(digits_teacher, config)
    assert tried == [8]
