"""A real ImageNet network with dead channels, where `GENIE_KITS` names the folder that holds it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from genie_cli.config import ModelConfig, QuantizeConfig, SynthesizeConfig, build
from genie_cli.data.labeled import TensorImages
from genie_cli.data.sources import open_data
from genie_cli.evaluation.accuracy import evaluate
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_teacher
from genie_cli.quantization.calibration_images import calibration_images, open_image_set
from genie_cli.quantization.presets import preset_options
from genie_cli.quantization.quantize import quantize_network
from genie_cli.student.build import insert_quantizers
from genie_cli.synthesis.distill import synthesize_images

KITS = os.environ.get("GENIE_KITS")
CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(KITS is None, reason="GENIE_KITS is not set")


@pytest.fixture(scope="module")
def folder() -> Path:
    assert KITS is not None
    return Path(KITS).resolve() / "imagenet"


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    model = f"{folder / 'mobilenet_v1.py'}:mobilenet_v1"
    weights = str(folder / "mobilenet_v1_imagenet.safetensors")
    return load_teacher(ModelConfig(name=model, weights=weights, mean=(0.5,) * 3, std=(0.5,) * 3))


def test_dead_channels_give_finite_images_and_a_finite_network(teacher: Teacher):
    synthesis = SynthesizeConfig(num_images=4, num_steps=3)
    images = synthesize_images(teacher, synthesis, CPU, torch.bfloat16).images
    assert torch.isfinite(images).all()
    network = quantize_network(teacher, images, QuantizeConfig(num_steps=2, batch_size=2), CPU, torch.bfloat16)
    assert all(torch.isfinite(weight()).all() for weight in network.weights.values())
    student = insert_quantizers(network.folded.graph, network.plan, network.weights, network.activations)
    with torch.no_grad():
        assert torch.isfinite(student(images)).all()


def test_eight_bits_by_mse_on_real_images_stay_near_float(teacher: Teacher, folder: Path):
    source = f"imagefolder:{folder / 'images'}"
    images = open_image_set(source, teacher, 64, seed=0)
    config = build(QuantizeConfig, preset_options("mse"), {"weight_bits": 8, "activation_bits": 8})
    network = quantize_network(teacher, calibration_images(images, teacher, 64), config, CPU, torch.float32)
    student = insert_quantizers(network.folded.graph, network.plan, network.weights, network.activations)
    data = open_data(source, teacher.input)
    rows = torch.randperm(data.num_images, generator=torch.Generator().manual_seed(0))[64:264].tolist()
    others = TensorImages(data.pixels(rows), data.labels[rows], teacher.input)
    found = evaluate(student, others, teacher.num_classes, 50, CPU, teacher=teacher.graph)
    assert found.teacher_top1 is not None and found.top1 > found.teacher_top1 - 3
