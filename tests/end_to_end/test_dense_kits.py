"""A detector and a segmenter with trained weights, where `GENIE_KITS` names the folder that holds them."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from genie_cli import load
from genie_cli.config import ModelConfig, QuantizeConfig, build
from genie_cli.models.graph.outputs import named_outputs, structured
from genie_cli.models.graph.slopes import slopes
from genie_cli.models.graph.tensors import set_tensor
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_architecture, load_teacher
from genie_cli.quantization.presets import preset_options
from tests.support import stages
from tests.support.students import save_student

KITS = os.environ.get("GENIE_KITS")
pytestmark = [pytest.mark.kit, pytest.mark.slow, pytest.mark.skipif(KITS is None, reason="GENIE_KITS is not set")]
NEAREST = build(QuantizeConfig, preset_options("minmax"), {"weight_bits": 8, "activation_bits": 8})


def images(folder: Path, teacher: Teacher, count: int) -> Tensor:
    """The first photographs, normalised for the network."""
    files = sorted(folder.glob("*.jpg"))[:count]
    pixels = torch.stack([pil_to_tensor(Image.open(file).convert("RGB")) for file in files])
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (teacher.input.mean, teacher.input.std))
    return (pixels / 255 - mean) / std


def kit(name: str) -> Path:
    assert KITS is not None
    return Path(KITS).resolve() / name


def test_a_detector_returns_its_maps(tmp_path: Path) -> None:
    model = f"{kit('coco')}/fastest_det.py:fastest_det"
    weights = str(kit("coco") / "fastest_det.safetensors")
    teacher = load_teacher(ModelConfig(name=model, weights=weights, input_size=352, mean=(0,) * 3, std=(1,) * 3))
    assert [tensor.described() for tensor in teacher.outputs.tensors] == [
        "objectness [B, 1, 22, 22]",
        "boxes [B, 4, 22, 22]",
        "classes [B, 80, 22, 22]",
    ]
    photographs = images(kit("coco") / "images", teacher, 4)
    network = stages.quantize(teacher, photographs, NEAREST)
    assert list(network.output_errors) == ["objectness", "boxes", "classes"]
    assert max(network.output_errors.values()) < 0.05
    save_student(network, teacher, tmp_path / "q")
    with torch.no_grad():
        found = load(load_architecture(ModelConfig(name=model)), tmp_path / "q")(photographs[:2])
        wanted = structured(teacher.graph)(photographs[:2])
    assert [name for name, _ in named_outputs(found)] == list(wanted)
    for name, value in found.items():
        assert (value - wanted[name]).norm() < 0.25 * wanted[name].norm(), name


def segmenter() -> Teacher:
    return load_teacher(
        ModelConfig(
            name=f"{kit('camvid')}/espnet.py:espnet",
            weights=str(kit("camvid") / "espnet.safetensors"),
            input_size="360x480",
            mean=(0.4119, 0.4251, 0.4327),
            std=(69.90, 72.69, 72.13),
        )
    )


def test_a_segmenter_of_oblong_images() -> None:
    teacher = segmenter()
    assert [tensor.described() for tensor in teacher.outputs.tensors] == ["output [B, 12, 360, 480]"]
    assert teacher.logits is None
    photographs = images(kit("camvid") / "train", teacher, 2)
    network = stages.quantize(teacher, photographs, NEAREST)
    with torch.no_grad():
        found, wanted = network.student().eval()(photographs), teacher.graph(photographs)
    assert (found.argmax(1) == wanted.argmax(1)).float().mean() > 0.85


def test_a_segmenter_s_slopes_are_quantized_and_change_little() -> None:
    teacher = segmenter()
    plan = stages.plan_of(teacher, NEAREST, None)
    assert plan.coverage.parameters >= 0.99
    assert not plan.coverage.in_float
    assert sum(slope.codes.numel() for slope in plan.slopes.values()) == 1826
    graph = copy.deepcopy(plan.folded.graph)
    for slope in slopes(graph):
        set_tensor(graph, slope.key, plan.slopes[slope.name]())
    photographs = images(kit("camvid") / "train", teacher, 2)
    with torch.no_grad():
        found, wanted = graph(photographs), teacher.graph(photographs)
    assert 0 < (found - wanted).norm() < 0.01 * wanted.norm()
    assert (found.argmax(1) == wanted.argmax(1)).float().mean() > 0.99
