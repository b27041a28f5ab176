"""The room that a quantization asks for holds its files, and is not much more than they take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genie_cli.config import QuantizeConfig, build
from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.tensors import named_tensors, numel_per_image
from genie_cli.models.teacher import Teacher
from genie_cli.quantization import plan, presets
from genie_cli.quantization.activations.budget import ActivationBudget
from genie_cli.quantization.disk_need import quantization_need
from genie_cli.quantization.units.partition import reconstruction_units
from genie_cli.runtime.determinism import MASK_POOL
from genie_cli.work.room import DiskNeed
from tests.support import stages
from tests.support.networks import noise
from tests.support.students import save_student

NUM_IMAGES = 12
PLENTY = 1 << 40
ALLOWED = 1 << 20
"""Bytes over what is taken: what files say beside their tensors is counted generously."""


def configured(preset: str, **more: Any) -> QuantizeConfig:
    options = {**presets.preset_options(preset), "num_steps": 12, "batch_size": 4, "weight_bits": 3, **more}
    return build(QuantizeConfig, options)


def folder_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def need(
    teacher: Teacher,
    config: QuantizeConfig,
    num_images: int = NUM_IMAGES,
    dtype: torch.dtype = torch.float32,
    num_processes: int = 1,
    host_memory: int = PLENTY,
) -> DiskNeed:
    made = stages.plan_of(teacher, config)
    if made.budget is not None:
        made = replace(made, budget=ActivationBudget(0, host_memory))
    return quantization_need(made, num_images, dtype, num_processes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("preset", "more", "memory", "excess"),
    [
        ("genie-m", {"patience": 12, "holdout": 0.25, "warmup": 0.0}, 100_000, 1.1),
        ("adaround", {"unit": "layer"}, 0, 2),  # a layer's checkpoint counts as its whole unit's
        ("lsq", {}, PLENTY, 1.1),
    ],
)
def test_a_run_takes_no_more_than_it_asks_for_and_not_much_less(
    preset: str,
    more: dict[str, Any],
    memory: int,
    excess: float,
    dtype: torch.dtype,
    digits_teacher: Teacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    measured_work: Any,
):
    monkeypatch.setattr(plan, "activation_budget", lambda *_: ActivationBudget(0, memory))
    config = configured(preset, **more)
    network = stages.quantize(digits_teacher, noise(NUM_IMAGES), config, dtype=dtype, work=measured_work, log_every=10)
    save_student(network, digits_teacher, tmp_path / "out")

    found = need(digits_teacher, config, dtype=dtype, host_memory=memory)
    held = measured_work.parts + max(3 * measured_work.largest, folder_size(tmp_path / "out"))
    masks = 0 if config.drop_prob else 3 * MASK_POOL  # counted whether they are drawn or not
    assert held <= found.beside_output <= excess * held + masks + ALLOWED
    assert network.memory["disk"] <= found.temporary <= 2 * network.memory["disk"]
    assert (found.temporary > 0) == (memory < PLENTY)


@pytest.mark.parametrize("preset", ["minmax", "dfq"])
def test_what_learns_nothing_keeps_nothing_but_its_output(preset: str, digits_teacher: Teacher, tmp_path: Path):
    config = configured(preset)
    network = stages.quantize_as_configured(digits_teacher, torch.zeros(2, 1, 16, 16), config)
    save_student(network, digits_teacher, tmp_path / "out")
    size = folder_size(tmp_path / "out")
    assert size <= need(digits_teacher, config, 2).beside_output <= 1.3 * size + ALLOWED


def test_each_process_keeps_checkpoints_of_its_own(digits_teacher: Teacher):
    one, two, three = (
        need(digits_teacher, configured("lsq"), num_processes=count).beside_output for count in (1, 2, 3)
    )
    assert three - two == two - one
    learned = sum(weight.numel() for key, weight in named_tensors(digits_teacher.graph).items() if "conv" in key)
    assert two - one > 3 * 4 * 4 * learned  # three checkpoints: values, Adam's two moments, the best


def test_activations_go_to_the_disk_where_memory_has_no_room(digits_teacher: Teacher):
    folded = fold_batch_norms(digits_teacher.graph).graph
    units, numel = reconstruction_units(folded), {node: numel_per_image(node) for node in data_nodes(folded)}
    config = configured("genie-m")

    def peak(budget: int, num_images: int = 1, dtype: torch.dtype = torch.float32) -> int:
        return need(digits_teacher, config, num_images, dtype, host_memory=budget).temporary

    # The teacher's input and the quantized one of a unit; its outputs replace one after the other.
    before, behind = ([numel[getattr(unit, side)[0]] for unit in units] for side in ("sources", "outputs"))
    most = 4 * max(max(2 * b + a, b + 2 * a) for b, a in zip(before[1:], behind[1:], strict=True))
    assert most <= peak(0) <= 1.5 * most
    assert peak(0, 1000) == 1000 * peak(0)
    assert peak(0, dtype=torch.bfloat16) < 0.6 * peak(0)
    assert peak(peak(0)) == 0
    assert most - most // 2 <= peak(most // 2) < peak(0)
