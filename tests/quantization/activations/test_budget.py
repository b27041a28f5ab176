"""The budget of stored activations, and that it changes where they lie but not the result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from genie_cli.config import QuantizeConfig
from genie_cli.errors import UsageError
from genie_cli.models.graph.cuts import data_nodes
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.activations.budget import _working_set, activation_budget
from genie_cli.quantization.quantize import QuantizedNetwork
from genie_cli.quantization.units.partition import reconstruction_units
from genie_cli.quantization.units.unit_graph import rows_at_once
from tests.support import CPU, stages
from tests.support.networks import digit_images
from tests.support.recipes import MINMAX_RANGES


def needed(teacher: Teacher, batch_size: int) -> int:
    folded = fold_batch_norms(teacher.graph).graph
    return max(_working_set(folded, unit, batch_size) for unit in reconstruction_units(folded))


def budget(teacher: Teacher, **options: Any) -> int:
    folded = fold_batch_norms(teacher.graph).graph
    return activation_budget(folded, reconstruction_units(folded), QuantizeConfig(**options), CPU).host


def test_limit_less_the_working_set_is_left(digits_teacher: Teacher):
    assert budget(digits_teacher, memory_limit=1 << 30, batch_size=4) == (1 << 30) - needed(digits_teacher, 4)
    assert 0 < budget(digits_teacher) < 1 << 44  # from the free memory


def test_working_set_grows_with_the_batch(digits_teacher: Teacher):
    small, large = needed(digits_teacher, 8), needed(digits_teacher, 32)
    assert small < large < 4.1 * small


def test_a_limit_below_one_batch_is_refused_with_both_sizes(digits_teacher: Teacher):
    with pytest.raises(
        UsageError, match=r"--memory-limit 1\.00 KiB is below the \d.*MiB that a step of 32 images needs"
    ):
        budget(digits_teacher, memory_limit=1024)


def test_large_tensors_pass_a_few_at_a_time(digits_teacher: Teacher):
    nodes = data_nodes(fold_batch_norms(digits_teacher.graph).graph)
    assert rows_at_once(nodes, CPU) == 64
    largest = max(nodes, key=lambda node: node.meta["val"][0].numel() if node.meta["val"].dim() > 1 else 0)
    shape = (2, 1 << 20, 4)
    largest.meta["val"] = torch.empty(shape, device="meta")
    assert rows_at_once(nodes, CPU) == 1  # 16 MiB an image


def test_where_activations_lie_does_not_change_the_network(digits_teacher: Teacher):
    images = digit_images(40)

    def run(limit: int) -> QuantizedNetwork:
        config = QuantizeConfig(num_steps=5, batch_size=8, memory_limit=limit, **MINMAX_RANGES)
        return stages.quantize(digits_teacher, images, config)

    on_host, on_disk = run(1 << 30), run(needed(digits_teacher, 8))
    assert on_host.memory["disk"] == 0 < on_disk.memory["disk"] and on_disk.memory["host"] == 0 < on_host.memory["host"]
    for name, weight in on_host.weights.items():
        assert torch.equal(weight.codes, on_disk.weights[name].codes)
        assert torch.equal(weight.scale, on_disk.weights[name].scale)
    for name, activation in on_host.activations.items():
        assert torch.equal(activation.step_size, on_disk.activations[name].step_size)
