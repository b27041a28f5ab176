"""Slopes as integers: closed forms, the student's arithmetic, and the way through a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import fx

import genie_cli
from genie_cli.artifacts.quantized import QuantizedWeight
from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.config import QuantizeConfig, build
from genie_cli.errors import InputError
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.quantization.export import to_artifact
from genie_cli.quantization.presets import preset_options
from genie_cli.quantization.units.unit_graph import cut_out
from genie_cli.student.load import load_student
from genie_cli.student.modules import IntegerWeight
from genie_cli.student.slopes import integer_slopes
from tests.support import ARITHMETIC, CPU, stages
from tests.support.networks import noise
from tests.support.rectifiers import SLOPES, SPEC, rectifiers
from tests.support.students import node_values, save_student, student_of

NEAREST = build(QuantizeConfig, preset_options("minmax"), {"weight_bits": 3, "activation_bits": 4})
IMAGES = noise(16, size=8)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return make_teacher("rectifiers", rectifiers(), SPEC)


def rounded(values: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Codes and scale of slopes over their full range."""
    scale = np.float32(max(-values.min() / 128, values.max() / 127, 0) or 1)
    return np.rint(values / scale), scale


@pytest.mark.parametrize(
    ("values", "codes", "scale"),
    [
        ([0.25], [127], 0.25 / 127),
        ([-0.25], [-128], 0.25 / 128),
        ([1.27, 0.01, 0.0, -0.026, 0.635], [127, 1, 0, -3, 64], 0.01),
        ([0.0, 0.0], [0, 0], 1.0),
        ([-1.28, 0.5], [-128, 50], 0.01),
    ],
)
def test_codes_and_scale_are_those_of_the_closed_form(values: list[float], codes: list[int], scale: float) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.ops.aten.prelu.default, (x, graph.get_attr("slope"))))
    root = torch.nn.Module()
    root.register_buffer("slope", torch.tensor(values))
    (found,) = integer_slopes(fx.GraphModule(root, graph), "minmax").values()
    assert found.codes.dtype == torch.int8
    # 0.635 lies in the middle between two codes, up to the last bit of its scale
    assert (found.codes.int() - torch.tensor(codes)).abs().max() <= (0.635 in values)
    assert found.scale.shape == found.zero_point.shape == (1, 1)
    assert float(found.scale) == pytest.approx(scale, rel=1e-6)
    assert not found.zero_point.any()
    assert str(found.format) == "int8 per tensor, symmetric"


def test_the_search_leaves_no_larger_error_than_the_full_range(teacher: Teacher) -> None:
    errors = []
    for kind in ("search", "minmax"):
        found = integer_slopes(teacher.graph, kind)["act"]  # type: ignore[arg-type]
        errors.append(float((found() - teacher.graph.get_buffer("act.weight")).abs().pow(2.4).sum()))
    assert errors[0] <= errors[1] * 1.001


@pytest.mark.parametrize("protocol", ["genie", "ait", "hardware", "integer"])
def test_the_student_bends_by_the_rounded_slopes(teacher: Teacher, protocol: str) -> None:
    config = NEAREST.model_copy(update={"protocol": protocol, "bits_override": {"*": (2, 8)}})
    network = stages.quantize(teacher, IMAGES, config)
    student = student_of(network)
    values = node_values(student, IMAGES)
    bends = [node for node in student.graph.nodes if node.target is torch.ops.aten.prelu.default]
    parameters = [teacher.graph.get_buffer(key).numpy() for key in ("act.weight", "act.weight", "one.weight", "own")]
    assert len(bends) == len(parameters)
    for node, slopes in zip(bends, parameters, strict=True):
        codes, scale = rounded(slopes)
        slope = (codes.astype(np.float32) * scale).reshape(1, -1, 1, 1)
        x = values[node.args[0].name].numpy()
        np.testing.assert_array_equal(values[node.name].numpy(), np.where(x > 0, x, slope * x))


def test_units_learn_with_the_rounded_slopes_and_do_not_move_them(teacher: Teacher) -> None:
    config = build(QuantizeConfig, preset_options("genie-m"), {"num_steps": 4, "batch_size": 8})
    plan = stages.plan_of(teacher, config)
    assert {name: tuple(slope.codes.shape) for name, slope in plan.slopes.items()} == SLOPES
    network = stages.quantize(teacher, IMAGES, config)
    for unit in plan.units:
        part = cut_out(plan.folded.graph, unit, plan.bits, CPU, plan.slopes)
        read = {name for name in SLOPES if any(key.startswith(name) for key, _ in part.teacher.named_buffers())}
        assert part.slopes.keys() == read
        student = part.student(network.weights, network.activations)
        for name in read:
            module = student.get_submodule(f"weight_quantizers.{name}")
            assert isinstance(module, IntegerWeight)
            assert torch.equal(module.codes, network.plan.slopes[name].codes)
        assert not read & {key.removesuffix(".weight") for key, _ in student.named_buffers()}


def test_a_folder_gives_codes_and_network_back(teacher: Teacher, tmp_path: Path) -> None:
    network = stages.quantize(teacher, IMAGES, NEAREST)
    save_student(network, teacher, tmp_path / "q")
    artifact = load_quantized(tmp_path / "q")
    assert not set(artifact.parameters) & {"act.weight", "one.weight", "own", "chosen"}
    assert artifact.metadata.coverage is not None
    assert artifact.metadata.coverage.parameters == 1
    for name, slope in network.plan.slopes.items():
        stored = artifact.weights[name]
        assert (stored.bits, stored.grid, stored.axis) == (8, "symmetric", None)
        assert torch.equal(stored.codes, slope.codes)
        assert torch.equal(stored.scale, slope.scale)
    found = genie_cli.load(rectifiers(), tmp_path / "q")
    assert torch.equal(found(IMAGES), student_of(network)(IMAGES))
    assert found.half()(IMAGES.half()).dtype == torch.half
    module = found.float().get_submodule("weight_quantizers.act")
    assert torch.equal(module(), network.plan.slopes["act"]())  # a cast and its way back lose nothing


def test_folders_with_slopes_in_float_are_read(teacher: Teacher) -> None:
    network = stages.quantize(teacher, IMAGES, NEAREST)
    artifact = to_artifact(network, teacher, None, ARITHMETIC)
    floats = {key: teacher.graph.get_buffer(key) for key in ("act.weight", "one.weight", "own", "chosen")}
    former = dataclasses.replace(
        artifact,
        weights={name: weight for name, weight in artifact.weights.items() if name not in SLOPES},
        parameters={**artifact.parameters, **floats},
    )
    student = load_student(teacher, former)
    assert torch.equal(student.get_buffer("act.weight"), floats["act.weight"])
    assert not torch.equal(student(IMAGES), student_of(network)(IMAGES))
    lacking = dataclasses.replace(former, parameters=artifact.parameters)
    with pytest.raises(InputError, match=r"the folder lacks 4 tensor\(s\), first 'act.weight'"):
        load_student(teacher, lacking)


def test_damaged_slopes_are_refused() -> None:
    one, zero = torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32)
    codes = torch.zeros(3, dtype=torch.int8)
    QuantizedWeight(codes, one, zero, 8, "symmetric", None)
    with pytest.raises(ValueError, match=r"scale must be torch.float32 \[1, 1\]"):
        QuantizedWeight(codes, torch.ones(3, 1), zero, 8, "symmetric", None)
    with pytest.raises(ValueError, match="axis must be 0 or None, got 1"):
        QuantizedWeight(codes, one, zero, 8, "symmetric", 1)
