"""Symmetric weight grids, activations of 9 to 16 bits, and weights alone: with every way to learn, and DFQ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.config import QuantizeConfig
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.presets import preset_options
from genie_cli.quantization.reconstruction.learned_unit import LearnedUnit, pack_unit, unpack_unit
from genie_cli.quantization.result import QuantizedNetwork
from genie_cli.student.load import load_student
from tests.support import CPU, stages
from tests.support.networks import digit_images
from tests.support.students import save_student, student_of

PRESETS = ["genie-m", "adaround", "lsq", "mse", "dfq"]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return digit_images(16)


def quantize(teacher: Teacher, images: Tensor, preset: str = "genie-m", **options: Any) -> QuantizedNetwork:
    keys = {"weight_range": "minmax", **preset_options(preset), "num_steps": 2, "batch_size": 8, **options}
    config = QuantizeConfig(preset=preset, **keys)
    if config.data_free:
        return stages.quantize_without_images(teacher, config)
    return stages.quantize(teacher, images, config)


def distance(network: QuantizedNetwork, teacher: Teacher, images: Tensor) -> float:
    """Relative distance of the outputs from the teacher's."""
    with torch.no_grad():
        wanted = teacher.graph(images)
        return float((student_of(network)(images) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("preset", PRESETS)
def test_symmetric_codes_in_every_preset(digits_teacher: Teacher, images: Tensor, tmp_path: Path, preset: str) -> None:
    network = quantize(digits_teacher, images, preset, weight_bits=6, activation_bits=8, weight_grid="symmetric")
    layers = {layer.name: get_tensor(network.plan.folded.graph, layer.weight_key)
              for layer in weight_layers(network.plan.folded.graph)}  # fmt: skip
    for name, weight in network.weights.items():
        half = 2 ** (weight.format.bits - 1)
        assert weight.codes.dtype == torch.int8 and not weight.zero_point.any()
        assert -half <= int(weight.codes.min()) < 0 < int(weight.codes.max()) < half
        error = (weight() - layers[name]).abs().flatten(1)
        assert bool((error <= 1.6 * weight.scale).all()), name  # up or down, and a little learning
    assert distance(network, digits_teacher, images) < 0.2
    save_student(network, digits_teacher, tmp_path / "q")
    restored = load_student(digits_teacher, load_quantized(tmp_path / "q"))
    assert torch.equal(restored(images), student_of(network)(images))


@pytest.mark.parametrize("preset", PRESETS)
def test_weights_alone(digits_teacher: Teacher, images: Tensor, tmp_path: Path, preset: str) -> None:
    network = quantize(digits_teacher, images, preset, weight_bits=8, activation_bits="none")
    assert network.activations == {}
    assert distance(network, digits_teacher, images) < 0.02
    save_student(network, digits_teacher, tmp_path / "q")
    artifact = load_quantized(tmp_path / "q")
    assert artifact.activations == {} and artifact.metadata.config["activation_bits"] is None
    assert torch.equal(load_student(digits_teacher, artifact)(images), student_of(network)(images))


@pytest.mark.parametrize("preset", ["mse", "dfq"])
def test_16_bits_are_nearly_float(digits_teacher: Teacher, images: Tensor, tmp_path: Path, preset: str) -> None:
    """Neither preset's weights depend on the activations, so that a network of weights alone is what is approached."""
    networks = [quantize(digits_teacher, images, preset, weight_bits=8, activation_bits=bits) for bits in (8, 16, None)]
    with torch.no_grad():
        coarse, fine, alone = (student_of(network)(images) for network in networks)
    assert (fine - alone).norm() < 2e-3 * alone.norm()
    assert (fine - alone).norm() < 0.1 * (coarse - alone).norm()
    assert {a.format.bits for a in networks[1].activations.values()} == {16}
    save_student(networks[1], digits_teacher, tmp_path / "q")
    assert torch.equal(load_student(digits_teacher, load_quantized(tmp_path / "q"))(images), fine)


def test_16_bits_are_learned(digits_teacher: Teacher, images: Tensor) -> None:
    network = quantize(digits_teacher, images, weight_bits=8, activation_bits=16)
    assert distance(network, digits_teacher, images) < 0.02


def test_an_unfinished_run_keeps_the_grid(digits_teacher: Teacher, images: Tensor) -> None:
    network = quantize(digits_teacher, images, "mse", weight_grid="symmetric", activation_bits=12)
    unit = LearnedUnit(network.weights, network.activations, 3)
    back = unpack_unit(pack_unit(unit), CPU)
    for name, weight in network.weights.items():
        assert back.weights[name].format == weight.format
        assert torch.equal(back.weights[name].codes, weight.codes)
    assert [a.format for a in back.activations.values()] == [a.format for a in network.activations.values()]


def test_nothing_to_learn_is_refused() -> None:
    nearest = {"rounding": "nearest", "activation_bits": "none"}
    with pytest.raises(ValidationError, match="activation_bits = none leaves nothing to learn"):
        QuantizeConfig(**nearest)
    with pytest.raises(ValidationError, match="leaves nothing to learn"):
        QuantizeConfig(**nearest, bits_override={"fc": (8, None)})
    assert QuantizeConfig(**nearest, bits_override={"fc": (8, 8)}).activation_bits is None
