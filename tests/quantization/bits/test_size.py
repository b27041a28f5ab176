"""The size of a folder before it is written, and the bit operations of a network."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genie_cli.artifacts.metadata import FOLDER_FILES
from genie_cli.config import ModelConfig, QuantizeConfig
from genie_cli.config.bit_table import BitTable
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import Teacher
from genie_cli.models.zoo import load_teacher
from genie_cli.quantization.bits.operations import layer_operations, num_bitops
from genie_cli.quantization.bits.size import folder_size
from genie_cli.student.bit_assignment import assign_bits
from genie_cli.student.protocol import PROTOCOLS
from tests.support import ARITHMETIC
from tests.support.stages import plan_of, quantize
from tests.support.students import save_student


@functools.cache
def digits() -> Teacher:
    return load_teacher(ModelConfig(name="digits_resnet"))


LAYERS = [layer.name for layer in weight_layers(digits().graph)]
SLACK = 400
"""Bytes by which numbers that are not known yet may be shorter than the longest ones."""


def folder_bytes(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in FOLDER_FILES)


@settings(max_examples=4, deadline=None)
@given(bits=st.lists(st.integers(2, 8), min_size=len(LAYERS), max_size=len(LAYERS)), learned=st.booleans())
def test_a_folder_is_at_most_as_large_as_said(
    tmp_path_factory: pytest.TempPathFactory, bits: list[int], learned: bool
) -> None:
    table = BitTable(weights=dict(zip(LAYERS, bits, strict=True)))
    recipe: dict[str, Any] = {"num_steps": 2, "batch_size": 4, "holdout": 0.25} if learned else {"reconstruct": False}
    config = QuantizeConfig(protocol="ait", bits_table=table, **recipe)
    images = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    network = quantize(digits(), images, config)
    folder = tmp_path_factory.mktemp("size") / "quantized"
    save_student(network, digits(), folder)
    eight = plan_of(digits(), config.model_copy(update={"bits_table": BitTable(weights={"*": 8})}))
    said = folder_size(eight, None, ARITHMETIC).num_bytes(table.weights)
    assert said - SLACK <= folder_bytes(folder) <= said


def test_codes_alone_depend_on_the_bits() -> None:
    size = folder_size(plan_of(digits(), QuantizeConfig(weight_bits=8, protocol="ait")), None, ARITHMETIC)
    assert size.num_codes["fc"] == 640 and size.layer_bytes("fc", 3) == 240
    two, three = (size.num_bytes(dict.fromkeys(LAYERS, bits)) for bits in (2, 3))
    assert three - two == sum(-(-numel * 3 // 8) - -(-numel * 2 // 8) for numel in size.num_codes.values())


# --- bit operations


def test_bit_operations_of_digits_resnet_in_closed_form() -> None:
    graph = plan_of(digits(), QuantizeConfig()).folded.graph
    table = BitTable(weights={"fc": 3, "layer2.0.downsample.0": 5}, activations={"layer2.0.conv1.input": 6})
    bits = assign_bits(graph, PROTOCOLS["ait"], 4, 2, {}, "asymmetric", table)
    operations = layer_operations(graph, bits)
    shapes = {layer.name: get_tensor(graph, layer.weight_key).shape for layer in weight_layers(graph)}
    multiplications = {name: each.multiplications for name, each in operations.items()}
    assert multiplications["conv1"] == 16 * 16 * shapes["conv1"].numel()
    assert multiplications["layer2.0.downsample.0"] == 8 * 8 * shapes["layer2.0.downsample.0"].numel()
    assert multiplications["fc"] == 640
    assert operations["conv1"].site is None and operations["conv1"].input_bits == 8
    for layer in ("layer2.0.conv1", "layer2.0.downsample.0"):  # one tensor
        assert operations[layer].site == "layer2.0.conv1.input"
    own = {"conv1": (4, 8), "fc": (3, 2), "layer2.0.downsample.0": (5, 6), "layer2.0.conv1": (4, 6)}
    expected = sum(
        count * (own.get(name, (4, 2))[0] * own.get(name, (4, 2))[1]) for name, count in multiplications.items()
    )
    assert num_bitops(operations, bits) == expected


def test_inputs_in_float_count_32_bits() -> None:
    graph = plan_of(digits(), QuantizeConfig()).folded.graph
    bits = assign_bits(graph, PROTOCOLS["ait"], 4, None)
    operations = layer_operations(graph, bits)
    assert {name: each.input_bits for name, each in operations.items() if each.input_bits != 32} == {"conv1": 8}
    assert (
        num_bitops(operations, replace(bits, weights={**bits.weights, "fc": 5}))
        == num_bitops(operations, bits) + 640 * 32
    )


def test_a_kernel_reads_the_grid_behind_a_pooling() -> None:
    graph = plan_of(digits(), QuantizeConfig()).folded.graph
    bits = assign_bits(graph, PROTOCOLS["integer"], 4, 4)
    sites = {site.name for site in bits.activations}
    assert all(each.site in sites for each in layer_operations(graph, bits).values())
