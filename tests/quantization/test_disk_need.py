"""The room that a quantization asks for is the room that its files take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genie_cli.artifacts.disk import TENSOR_BYTES
from genie_cli.artifacts.quantized import save_quantized
from genie_cli.config import QuantizeConfig, build
from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import Teacher
from genie_cli.quantization import presets
from genie_cli.quantization.activation_store import ActivationPool
from genie_cli.quantization.disk_need import activations_on_disk, checkpoint_bytes, parts_bytes, quantization_need
from genie_cli.quantization.export import to_artifact
from genie_cli.quantization.memory_budget import ActivationBudget, numel_an_image
from genie_cli.quantization.units import reconstruction_units
from genie_cli.student.protocol import assign_bits, find_protocol
from tests.support import CPU, stages
from tests.support.networks import noise

NUM_IMAGES = 12


def configured(preset: str, **more: Any) -> QuantizeConfig:
    options = {**presets.preset_options(preset), "num_steps": 60, "batch_size": 4, "weight_bits": 3, **more}
    return build(QuantizeConfig, options)


def folder_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("preset", "more", "memory"),
    [
        ("genie-m", {"patience": 60, "holdout": 0.25, "warmup": 0.0}, 100_000),
        ("adaround", {"unit": "layer"}, 0),
        ("lsq", {}, 1 << 40),
    ],
)
def test_sizes_are_those_of_the_files(
    preset: str,
    more: dict[str, Any],
    memory: int,
    dtype: torch.dtype,
    digits_teacher: Teacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    measured_work: Any,
):
    for module in ("quantize", "disk_need"):
        monkeypatch.setattr(
            f"genie_cli.quantization.{module}.activation_budget", lambda *_: ActivationBudget(0, memory)
        )
    config = configured(preset, **more)
    images = noise(NUM_IMAGES)
    work = measured_work
    network = stages.quantize(digits_teacher, images, config, dtype=dtype, work=work)
    save_quantized(tmp_path / "out", to_artifact(network, digits_teacher, None, config, CPU))

    need = quantization_need(digits_teacher, config, CPU, dtype, NUM_IMAGES)
    held = work.parts + max(3 * work.largest, folder_size(tmp_path / "out"))
    assert 0.97 * held <= need.beside_output <= 1.15 * held + 16384
    assert need.temporary == network.memory["disk"]
    assert (need.temporary > 0) == (memory < 1 << 40)


@pytest.mark.parametrize("preset", ["minmax", "dfq"])
def test_what_learns_nothing_keeps_nothing_but_its_output(preset: str, digits_teacher: Teacher, tmp_path: Path):
    config = configured(preset)
    network = stages.quantize_as_configured(digits_teacher, torch.zeros(2, 1, 16, 16), config)
    save_quantized(tmp_path / "out", to_artifact(network, digits_teacher, None, config, CPU))
    size = folder_size(tmp_path / "out")
    assert 0.97 * size <= quantization_need(digits_teacher, config, CPU, torch.float32, 2).beside_output <= 1.3 * size


def test_checkpoints_and_parts_in_closed_form(digits_teacher: Teacher):
    folded = fold_batch_norms(digits_teacher.graph).graph
    plan = assign_bits(folded, find_protocol("genie"), 4, 4)
    unit = reconstruction_units(folded, whole=True)[0]
    config = configured("genie-m", drop_prob=0.0)

    def state(**more: Any) -> int:
        return checkpoint_bytes(folded, unit, plan, config.model_copy(update=more), NUM_IMAGES)

    num_sites = len(plan.activations)
    assert state(drop_prob=0.5) - state() == 2**20 + 256 * 8  # the pool of masks, and where they are cut out of it
    assert state(batch_size=14) - state() == 10 * 8
    shapes = [get_tensor(folded, layer.weight_key).shape for layer in weight_layers(folded)]
    learned = sum(shape.numel() + shape[0] for shape in shapes) + num_sites  # elements, an offset a channel, step sizes
    assert state(patience=50) - state() == 4 * learned + TENSOR_BYTES * 2
    assert state(unit="layer") < state()
    parts = sum(shape.numel() + 8 * shape[0] + 3 * TENSOR_BYTES for shape in shapes)  # codes, scale, zero point
    assert parts_bytes(folded, plan) == parts + num_sites * (4 + TENSOR_BYTES)


def test_activations_on_disk_in_closed_form(digits_teacher: Teacher):
    folded = fold_batch_norms(digits_teacher.graph).graph
    units = reconstruction_units(folded)
    config = configured("genie-m")
    numel = {node.name: numel_an_image(node) for node in data_nodes(folded)}

    def peak(budget: int, num_images: int = 1, dtype: torch.dtype = torch.float32) -> int:
        return activations_on_disk(folded, units, config, dtype, num_images, ActivationBudget(0, budget))

    # The first unit has one input, the others the teacher's and the quantized one; its outputs replace one of them.
    sets = [numel[units[0].source] + numel[units[0].output] * 2]
    sets += [max(numel[u.source] * 2 + numel[u.output], numel[u.source] + numel[u.output] * 2) for u in units[1:]]
    most = 4 * max(sets)
    assert peak(0) == most
    assert peak(0, 1000) == 1000 * most
    halved = [2 * (2 * numel[units[0].source] + numel[units[0].output] * 2), *(2 * size for size in sets[1:])]
    assert peak(0, dtype=torch.bfloat16) == max(halved)  # the images stay in float32
    assert peak(most) == 0
    with ActivationPool(CPU, 0, most // 2) as pool:  # the same first fit as the pool's
        assert peak(most // 2) <= most - pool.in_use["host"]
    assert 0 < peak(most // 2) < most
