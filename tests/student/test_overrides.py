"""Bits of single layers over the protocol: which layers and tensors they reach."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pytest
from torch import Tensor, fx, nn
from torch.nn import functional as F

from genie_cli.config import InputSpec, ModelConfig, QuantizeConfig, build, parse_yaml
from genie_cli.config.bit_table import BitTable
from genie_cli.errors import UsageError
from genie_cli.models.graph.capture import capture
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.zoo import load_untrained
from genie_cli.student.bit_assignment import assign_bits
from genie_cli.student.bit_plan import BitPlan
from genie_cli.student.overrides import layer_bits
from genie_cli.student.protocol import PROTOCOLS

# --- layers


LAYERS = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer10.0.conv1", "fc"]


def test_patterns_are_a_shell_s_over_whole_names() -> None:
    assert layer_bits(LAYERS, {}) == {}
    assert list(layer_bits(LAYERS, {"layer1.*": (8, 8)})) == ["layer1.0.conv1", "layer1.0.conv2"]
    assert list(layer_bits(LAYERS, {"conv1": (8, 8)})) == ["conv1"]
    assert list(layer_bits(LAYERS, {"*conv1": (8, 8)})) == ["conv1", "layer1.0.conv1", "layer10.0.conv1"]
    assert list(layer_bits(LAYERS, {"layer1?.*": (8, 8)})) == ["layer10.0.conv1"]


def test_later_patterns_win() -> None:
    assert layer_bits(LAYERS, {"*": (3, 3), "fc": (8, 4)}) == {**dict.fromkeys(LAYERS[:-1], (3, 3)), "fc": (8, 4)}
    assert set(layer_bits(LAYERS, {"fc": (8, 4), "*": (3, 3)}).values()) == {(3, 3)}


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("fcc", "Did you mean 'fc'?"),
        ("layr1.0.conv1", "Did you mean 'layer1.0.conv1'?"),
        ("FC", "`genie inspect MODEL` lists the layers."),
        ("features.*", "`genie inspect MODEL` lists the layers."),
        ("", "`genie inspect MODEL` lists the layers."),
    ],
)
def test_pattern_without_a_layer_is_named_with_the_nearest(pattern: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        layer_bits(LAYERS, {"*": (3, 3), pattern: (8, 8)})
    assert str(raised.value) == f"The bits override {pattern!r} matches no layer of the network. {hint}"


# --- plans


@functools.cache
def digits() -> fx.GraphModule:
    return fold_batch_norms(load_untrained(ModelConfig(name="digits_resnet")).graph).graph


def plan_of(overrides: Mapping[str, tuple[int, int | None]], protocol: str = "genie") -> BitPlan:
    return assign_bits(digits(), PROTOCOLS[protocol], 4, 4, overrides)


def sites(plan: BitPlan) -> dict[str, int]:
    return {site.name: site.bits for site in plan.activations}


def test_no_override_is_the_protocol() -> None:
    assert plan_of({}) == assign_bits(digits(), PROTOCOLS["genie"], 4, 4)


def test_override_ranks_above_the_protocol_s_exemptions() -> None:
    plan, before = plan_of({"conv1": (3, 5), "layer1.0.conv1": (6, 3), "fc": (2, 7)}), plan_of({})
    assert (before.weights["conv1"], before.weights["fc"]) == (8, 8)
    assert plan.weights == {**before.weights, "conv1": 3, "layer1.0.conv1": 6, "fc": 2}
    # the images, which conv1 reads, stay as they are
    assert sites(plan) == {**sites(before), "layer1.0.conv1.input": 3, "fc.input": 7}
    assert list(sites(plan)) == list(sites(before))


@pytest.mark.parametrize(
    ("overrides", "bits"),
    [
        ({"layer2.0.conv1": (4, 6)}, 6),
        ({"layer2.0.downsample.0": (4, 6)}, 6),
        ({"layer2.0.conv1": (4, 2)}, 4),  # downsample.0 reads the tensor too, and asks for 4
        ({"layer2.0.conv1": (4, 2), "layer2.0.downsample.0": (4, 3)}, 3),
        ({"layer2.*.conv1": (4, 2), "layer2.*.0": (4, 2)}, 2),
    ],
)
@pytest.mark.parametrize("protocol", ["ait", "hardware"])
def test_tensor_of_two_layers_takes_the_largest(
    overrides: dict[str, tuple[int, int]], bits: int, protocol: str
) -> None:
    before = sites(plan_of({}, protocol))
    assert sites(plan_of(overrides, protocol)) == {**before, "layer2.0.conv1.input": bits}


@pytest.mark.parametrize("protocol", ["genie", "ait", "hardware"])
def test_weights_alone(protocol: str) -> None:
    plan = assign_bits(digits(), PROTOCOLS[protocol], 4, None)
    assert plan.activations == ()
    assert plan.weights == plan_of({}, protocol).weights


def test_16_bits_are_no_fewer_where_a_protocol_exempts() -> None:
    assert set(sites(assign_bits(digits(), PROTOCOLS["genie"], 4, 16)).values()) == {16}


def test_inputs_in_float_and_others_mixed() -> None:
    before = sites(plan_of({}))
    some = {name: bits for name, bits in before.items() if name != "layer1.0.conv2.input"}
    assert sites(plan_of({"layer1.0.conv2": (4, None)})) == some
    alone = assign_bits(digits(), PROTOCOLS["genie"], 4, None, {"*.conv2": (4, 12), "layer3.0.conv1": (4, 8)})
    # downsample.0 reads what layer3.0.conv1 reads, in float: so does the tensor stay
    assert sites(alone) == {"layer1.0.conv2.input": 12, "layer2.0.conv2.input": 12, "layer3.0.conv2.input": 12}


@pytest.mark.parametrize(("protocol", "grid", "expected"), [
    ("genie", "asymmetric", set()),
    ("genie", "symmetric", {"conv1", "layer1.0.conv1", "fc"}),
    ("integer", "asymmetric", {"conv1", "fc"}),
])  # fmt: skip
def test_symmetric_weights(protocol: str, grid: Any, expected: set[str]) -> None:
    plan = assign_bits(digits(), PROTOCOLS[protocol], 4, 4, {}, grid)
    assert plan.symmetric_weights & {"conv1", "layer1.0.conv1", "fc"} == expected
    assert plan.weight_format("conv1").symmetric is ("conv1" in expected)
    part = plan.part(["conv1"], ())
    assert part.symmetric_weights == expected & {"conv1"} and part.weights == {"conv1": 8}


def test_outputs_of_hardware_keep_the_target_unless_a_layer_reads_them() -> None:
    plan = sites(plan_of({"*": (3, 3)}, "hardware"))
    kept = {name for name, bits in plan.items() if bits == 4}
    assert kept == {"avgpool.adaptive_avg_pool2d0.input", "fc.output"}
    assert {bits for name, bits in plan.items() if name not in kept} == {3}


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.twice, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.twice(F.relu(self.twice(self.conv(x)))).mean((2, 3)))


def test_each_use_of_a_shared_layer_is_a_layer() -> None:
    graph = fold_batch_norms(capture(Reused(), InputSpec(size=8))).graph
    plan = assign_bits(graph, PROTOCOLS["ait"], 4, 4, {"twice": (8, 8), "twice.reuse1": (2, 2)})
    assert plan.weights == {"conv": 4, "twice": 8, "twice.reuse1": 2, "fc": 4}
    assert sites(plan) == {"twice.input": 8, "twice.reuse1.input": 2, "fc.input": 4}


# --- the configuration


def configured(text: str) -> QuantizeConfig:
    return build(QuantizeConfig, {"bits_override": parse_yaml(text)}, where="quantize")


def test_key_of_the_params_file() -> None:
    assert QuantizeConfig().bits_override is None
    assert configured("").bits_override is None
    config = configured("{layer1.*: [8, 8], '*.conv2': [2, 4]}")
    assert config.bits_override == {"layer1.*": (8, 8), "*.conv2": (2, 4)}
    assert config.model_dump(mode="json")["bits_override"] == {"layer1.*": [8, 8], "*.conv2": [2, 4]}
    assert QuantizeConfig(**config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    "bits", ["8", "[8]", "[8, 8, 8]", "[9, 4]", "[4, 1]", "['8', '8']", "'8,8'", "[4.0, 4]", "[true, 4]", "", "{8: 8}"]
)
def test_bits_that_cannot_be_used_name_their_pattern(bits: str) -> None:
    with pytest.raises(UsageError) as raised:
        configured(f"conv1: [8, 8]\nlayer1.*: {bits}")
    message = str(raised.value)
    assert message.startswith("bits_override = {'conv1': ")
    assert "'layer1.*' needs two numbers, bits of the weight from 2 to 8 and of the input from 2 to 16 " in message


@pytest.mark.parametrize("text", ["fc", "[fc]", "[[fc, 8, 8]]", "3", "true", "{1: [8, 8]}"])
def test_overrides_that_are_no_mapping_of_names(text: str) -> None:
    with pytest.raises(UsageError, match="bits_override = "):
        configured(text)


# --- tables: weights by layer, activations by site


def planned(table: BitTable, protocol: str = "ait", activation_bits: int | None = 4) -> BitPlan:
    return assign_bits(digits(), PROTOCOLS[protocol], 4, activation_bits, {"fc": (8, 8)}, "asymmetric", table)


def test_a_table_ranks_above_protocol_and_overrides() -> None:
    before = planned(BitTable())
    plan = planned(BitTable(weights={"fc": 3, "layer1.*": 2}, activations={"fc.input": 5}))
    assert plan.weights == {**before.weights, "fc": 3, "layer1.0.conv1": 2, "layer1.0.conv2": 2}
    assert sites(plan) == {**sites(before), "fc.input": 5}


def test_a_site_goes_by_the_tensor_whoever_reads_it() -> None:
    plan = planned(BitTable(activations={"layer2.0.conv1.input": 2}))
    assert sites(plan)["layer2.0.conv1.input"] == 2  # downsample.0, which reads the tensor too, would have asked for 4


def test_a_table_takes_activations_to_floats_and_back() -> None:
    assert sites(planned(BitTable(activations={"*": None}))) == {}
    assert sites(planned(BitTable(activations={"*.conv2.input": 6}), activation_bits=None)) == {
        **{f"layer{n}.0.conv2.input": 6 for n in (1, 2, 3)}, "fc.input": 8
    }  # fmt: skip


def test_symmetry_follows_the_bits_of_the_table() -> None:
    plan = planned(BitTable(weights={"conv1": 4, "layer1.0.conv1": 8}), "integer")
    assert plan.symmetric_weights == {"layer1.0.conv1", "fc"}
    with pytest.raises(UsageError, match="leaves no activation in float"):
        planned(BitTable(activations={"layer1.0.conv1.input": None}), "integer")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (BitTable(weights={"conv7": 4}), "names the layer 'conv7', .* Did you mean 'conv1'"),
        (BitTable(activations={"fc.inptu": 4}), "names the activation site 'fc.inptu', .* Did you mean 'fc.input'"),
        (BitTable(activations={"conv1.input": 4}), "names the activation site 'conv1.input'"),  # the images
    ],
)
def test_absent_layers_and_sites_are_named(table: BitTable, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        planned(table)
