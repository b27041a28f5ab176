"""The room that a synthesis asks for holds its files, and is not much more than they take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from genie_cli.artifacts.images import save_images
from genie_cli.config import InputSpec, SynthesizeConfig, build
from genie_cli.models.teacher import Teacher
from genie_cli.synthesis import presets
from genie_cli.synthesis.disk_need import synthesis_need
from genie_cli.synthesis.export import to_artifact
from tests.support import ARITHMETIC, stages


@pytest.mark.parametrize("preset", ["genie", "zeroq", "gba", "qimera"])
def test_a_run_takes_no_more_than_it_asks_for_and_not_much_less(
    preset: str, digits_teacher: Teacher, tmp_path: Path, measured_work: Any
):
    options = {**presets.preset_options(preset), "num_steps": 12, "num_images": 24, "batch_size": 8}
    config = build(SynthesizeConfig, options)
    result = stages.synthesize(digits_teacher, config, work=measured_work)
    save_images(tmp_path / "out", *to_artifact(result.images, [digits_teacher], config, ARITHMETIC))
    need = synthesis_need(digits_teacher.input, digits_teacher.num_classes, config, 1)
    held = measured_work.parts + max(3 * measured_work.largest, (tmp_path / "out").stat().st_size)
    assert held <= need.beside_output <= 1.4 * held + (1 << 19)  # each file's header is counted generously


def test_large_sets_of_pixels():
    spec = InputSpec(size=224, mean=(0.5,) * 3, std=(0.5,) * 3, num_channels=3)
    config = SynthesizeConfig(generator=False, swing=False, num_images=1024, batch_size=128, num_steps=4000)
    image = 4 * 3 * 224 * 224

    def need(config: SynthesizeConfig, num_at_once: int = 1) -> int:
        return synthesis_need(spec, 1000, config, num_at_once).beside_output

    checkpoints = 3 * 3 * 128 * image  # pixels and Adam's moments, three of each batch at work
    taken = 1024 * image + checkpoints
    assert taken <= need(config) <= 1.2 * taken
    # twice the batches at work have twice the checkpoints, until all are
    assert checkpoints <= need(config, 2) - need(config) <= 1.35 * checkpoints
    assert need(config, 16) == need(config, 8)
    # many small batches: the output, half as large as the parts, is larger than the checkpoints
    taken = 1024 * image * 3 // 2
    assert taken <= need(config.model_copy(update={"batch_size": 2})) <= 1.2 * taken
