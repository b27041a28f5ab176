"""A real ImageNet network with dead channels, where `GENIE_KITS` names the folder that holds it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genie_cli.config import ModelConfig, QuantizeConfig, SynthesizeConfig, build
from genie_cli.data.labeled import TensorImages
from genie_cli.data.sources import open_data
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_teacher
from genie_cli.quantization.images import calibration_images, open_image_set
from genie_cli.quantization.presets import preset_options
from tests.support import stages
from tests.support.students import student_of

KITS = os.environ.get("GENIE_KITS")
pytestmark = [pytest.mark.kit, pytest.mark.skipif(KITS is None, reason="GENIE_KITS is not set")]


@pytest.fixture(scope="module")
def folder() -> Path:
    assert KITS is not None
    return Path(KITS).resolve() / "imagenet"


def mobilenet(folder: Path, **options: Any) -> Teacher:
    model = f"{folder / 'mobilenet_v1.py'}:mobilenet_v1"
    weights = str(folder / "mobilenet_v1_imagenet.safetensors")
    return load_teacher(ModelConfig(name=model, weights=weights, mean=(0.5,) * 3, std=(0.5,) * 3, **options))


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return mobilenet(folder)


@pytest.fixture(scope="module")
def others(teacher: Teacher, folder: Path) -> TensorImages:
    """200 images beside the 64 that calibration draws."""
    data = open_data(f"imagefolder:{folder / 'images'}", teacher.input)
    rows = torch.randperm(data.num_images, generator=torch.Generator().manual_seed(0))[64:264].tolist()
    return TensorImages(data.pixels(rows), data.labels[rows], teacher.input)


def top1(network: nn.Module, images: TensorImages) -> float:
    return stages.evaluate(network, images, 1000, 10).own["top1"]  # 10 at once take half the time of 50


@pytest.fixture(scope="module")
def float_top1(teacher: Teacher, others: TensorImages) -> float:
    return top1(teacher.graph, others)


@pytest.mark.slow
def test_dead_channels_give_finite_images_and_a_finite_network(folder: Path):
    teacher = mobilenet(folder, input_size=64)
    synthesis = SynthesizeConfig(num_images=4, num_steps=3)
    images = stages.synthesize(teacher, synthesis, dtype=torch.bfloat16).images
    assert torch.isfinite(images).all()
    network = stages.quantize(teacher, images, QuantizeConfig(num_steps=2, batch_size=2), dtype=torch.bfloat16)
    assert all(torch.isfinite(weight()).all() for weight in network.weights.values())
    with torch.no_grad():
        assert torch.isfinite(student_of(network)(images)).all()


@pytest.mark.slow
def test_eight_bits_by_mse_on_real_images_stay_near_float(
    teacher: Teacher, folder: Path, others: TensorImages, float_top1: float
):
    images = open_image_set(f"imagefolder:{folder / 'images'}", teacher, 64, seed=0)
    config = build(QuantizeConfig, preset_options("mse"), {"weight_bits": 8, "activation_bits": 8})
    network = stages.quantize(teacher, calibration_images(images, teacher, 64), config)
    assert top1(student_of(network), others) > float_top1 - 3


@pytest.mark.slow
def test_without_images_eight_and_four_bits_stay_near_float(teacher: Teacher, others: TensorImages, float_top1: float):
    """DFQ: W8A8 within 3 points of float; W4A8, where minmax on images has 0.2 %."""
    found = []
    for bits in (8, 4):
        network = stages.quantize_without_images(teacher, QuantizeConfig(weight_bits=bits, activation_bits=8))
        found.append(top1(student_of(network), others))
    assert float_top1 - found[0] <= 3 and found[1] > 40
