"""The room that a synthesis asks for is the room that its files take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from genie_cli.artifacts.disk import TENSOR_BYTES, DiskNeed
from genie_cli.artifacts.images import save_images
from genie_cli.config import InputSpec, SynthesizeConfig, build
from genie_cli.models.teacher import Teacher
from genie_cli.synthesis import presets
from genie_cli.synthesis.disk_need import checkpoint_bytes, synthesis_need
from genie_cli.synthesis.export import to_artifact
from tests.support import CPU, stages


@pytest.mark.parametrize("preset", ["genie", "zeroq", "gba", "qimera"])
def test_sizes_are_those_of_the_files(preset: str, digits_teacher: Teacher, tmp_path: Path, measured_work: Any):
    teacher = digits_teacher
    options = {**presets.preset_options(preset), "num_steps": 12, "num_images": 24, "batch_size": 8}
    config = build(SynthesizeConfig, options)
    work = measured_work
    result = stages.synthesize(teacher, config, work=work)
    save_images(tmp_path / "out", *to_artifact(result.images, [teacher], config, CPU))
    checkpoint = checkpoint_bytes(teacher.input, teacher.num_classes, 8, config)
    assert 0.98 * work.largest <= checkpoint <= 1.05 * work.largest + 2048
    needed = synthesis_need(teacher.input, teacher.num_classes, config).beside_output
    held = work.parts + 3 * work.largest
    assert 0.98 * held <= needed <= 1.05 * held + 8192
    assert needed > work.parts + (tmp_path / "out").stat().st_size


def test_closed_form_of_pixels():
    spec = InputSpec(size=224, mean=(0.5,) * 3, std=(0.5,) * 3, num_channels=3)
    config = SynthesizeConfig(generator=False, swing=False, num_images=1024, batch_size=128, num_steps=4000)
    image, curve = 3 * 224 * 224, 402 * 80
    parts = 1024 * image * 4 + 8 * curve
    state = 3 * 128 * image * 4 + 13 * TENSOR_BYTES + curve
    assert synthesis_need(spec, 1000, config) == DiskNeed(parts + 3 * state)
    # twice the processes have twice the checkpoints, until each batch has a process
    assert synthesis_need(spec, 1000, config, 2) == DiskNeed(parts + 6 * state)
    assert synthesis_need(spec, 1000, config, 16) == synthesis_need(spec, 1000, config, 8)
    # many small batches: the output is larger than the checkpoints
    small = config.model_copy(update={"batch_size": 2})
    curves = 512 * curve
    assert synthesis_need(spec, 1000, small) == DiskNeed(1024 * image * 6 + 2 * curves)
    pixels = small.model_copy(update={"image_dtype": "uint8"})
    assert synthesis_need(spec, 1000, pixels) == DiskNeed(1024 * image * 5 + 2 * curves)
