"""Every preset once: stages meet in a file alone, so that each image set stands for all in front of each quantizer."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import pytest
import torch

from genie_cli.artifacts.images import load_images, save_images
from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.config import ModelConfig, QuantizeConfig, SynthesizeConfig, build
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_teacher
from genie_cli.quantization import presets as quantizers
from genie_cli.quantization.images import calibration_images
from genie_cli.student.load import load_student
from genie_cli.synthesis import presets as synthesizers
from genie_cli.synthesis.discrepancy import Student
from genie_cli.synthesis.export import to_artifact
from tests.support import ARITHMETIC, CPU, stages
from tests.support.students import save_student

CHEAPEST = "minmax"
"""The quantizer that is left for the image sets of which there are more than quantizers."""
WITHOUT_IMAGES = [name for name in quantizers.PRESETS if quantizers.preset_options(name).get("data_free")]
WITH_IMAGES = [name for name in quantizers.PRESETS if name not in WITHOUT_IMAGES]
PAIRS = [
    *zip_longest(synthesizers.PRESETS, WITH_IMAGES, fillvalue=CHEAPEST),
    *((next(iter(synthesizers.PRESETS)), quantizer) for quantizer in WITHOUT_IMAGES),
]
"""Synthesizer and quantizer: twelve syntheses, seven quantizations that learn, and some that do not."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("presets")


def image_set(preset: str, teacher: Teacher, folder: Path) -> Path:
    """The image set of a preset, made once."""
    path = folder / f"{preset}.safetensors"
    if path.exists():
        return path
    needed: dict[str, object] = {}
    if preset == "mixmix":
        needed["other_teachers"] = [ModelConfig(name="digits_resnet")]
    if preset == "zaq":
        needed["student"] = quantized(CHEAPEST, "genie", teacher, folder)
    options = {**synthesizers.preset_options(preset), "num_steps": 3, "num_images": 16, "batch_size": 8, **needed}
    config = build(SynthesizeConfig, options, {"preset": preset})
    others = [load_teacher(other) for other in config.other_teachers]
    student = None
    if config.student is not None:
        student = Student(load_student(teacher, load_quantized(config.student)), CPU)
    result = stages.synthesize(teacher, config, others=others, student=student)
    save_images(path, *to_artifact(result.images, [teacher, *others], config, ARITHMETIC))
    return path


def quantized(preset: str, images: str, teacher: Teacher, folder: Path) -> Path:
    """The quantized folder of a preset on an image set."""
    out = folder / f"{images}-{preset}"
    options = {**quantizers.preset_options(preset), "num_steps": 3, "batch_size": 8, "weight_bits": 3}
    config = build(QuantizeConfig, options, {"preset": preset})
    used = None if config.data_free else load_images(image_set(images, teacher, folder))
    rows = torch.empty(0) if used is None else calibration_images(used, teacher, None)
    save_student(stages.quantize_as_configured(teacher, rows, config), teacher, out, used)
    return out


@pytest.mark.parametrize(("synthesizer", "quantizer"), PAIRS)
def test_every_preset_gives_a_network_that_loads_and_tells_digits(
    synthesizer: str, quantizer: str, digits_teacher: Teacher, folder: Path
):
    teacher = digits_teacher
    out = quantized(quantizer, synthesizer, teacher, folder)
    student = load_student(teacher, load_quantized(out))
    images = load_images(image_set(synthesizer, teacher, folder)).normalized(teacher.input.mean, teacher.input.std)
    with torch.no_grad():
        wanted, found = teacher.graph(images), student(images)
    assert torch.isfinite(found).all()
    assert (found - wanted).square().sum() < wanted.square().sum()  # nearer to the teacher than no answer


def test_a_preset_is_its_options():
    for module, cls in ((synthesizers, SynthesizeConfig), (quantizers, QuantizeConfig)):
        for name in module.PRESETS:
            options = module.preset_options(name)
            needed = {"mixmix": {"other_teachers": [{"name": "digits_resnet"}]}, "zaq": {"student": "x"}}.get(name, {})
            plain = build(cls, options, needed).model_dump()
            assert build(cls, options, needed, {"preset": name}).model_dump() == {**plain, "preset": name}
