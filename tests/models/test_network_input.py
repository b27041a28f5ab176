"""The images that a network takes: options before artifacts before declarations, and nothing assumed in silence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from torch import nn

from genie_cli.config import InputSpec, ModelConfig
from genie_cli.errors import InputError, UsageError
from genie_cli.models.network_input import RecordedInput, assumptions, describe_input, input_warnings

DECLARED = {
    "input_size": (1, 96, 96),
    "mean": [0.4],
    "std": (0.2,),
    "crop_pct": 0.8,
    "interpolation": "bicubic",
    "pool_size": (3, 3),
}
RECORDED = RecordedInput("folder q", "abc", InputSpec(num_channels=1, size=48, mean=(0.1,), std=(0.3,)))


def describe(
    declared: Any = None, recorded: RecordedInput | None = None, **options: Any
) -> tuple[InputSpec, list[str], list[str]]:
    """The input of a network that declares something, notes and warnings."""
    network, config = nn.Identity(), ModelConfig(**options)
    network.pretrained_cfg = declared
    spec = describe_input(config, InputSpec(), network, recorded)
    notes = assumptions("net.py:build", config, network, spec, recorded)
    return spec, notes, input_warnings(config, network, recorded)


def test_a_declaration_is_taken_whole_and_nothing_is_said() -> None:
    spec, *said = describe(DECLARED)
    assert spec == InputSpec(num_channels=1, size=96, mean=(0.4,), std=(0.2,), resize_size=120, interpolation="bicubic")
    assert said == [[], []]


def test_the_crop_share_holds_for_another_size() -> None:
    assert describe(DECLARED, input_size=64)[0].resize_size == 80
    assert describe(None, input_size=64)[0].resize_size == round(64 / 0.875)


@dataclass
class Declaration:
    input_size: tuple[int, ...] = (3, 40, 40)
    mean: tuple[float, ...] = (0, 0, 0)
    std: tuple[float, ...] = (1, 1, 1)


def test_a_declaration_may_be_an_object_or_have_the_older_name() -> None:
    assert describe(Declaration())[0].size == 40
    network = nn.Identity()
    network.default_cfg = DECLARED
    assert describe_input(ModelConfig(), InputSpec(), network).size == 96


def test_what_is_assumed_is_told_in_one_line() -> None:
    spec, (said,), warnings = describe(None)
    assert spec == InputSpec(resize_size=256)
    assert said == (
        "'net.py:build' does not say what images it takes, and these are assumed: --num-channels 3, --input-size 224, "
        "--mean 0.485,0.456,0.406, --std 0.229,0.224,0.225."
    )
    assert warnings == []


@pytest.mark.parametrize(
    ("declared", "options", "assumed"),
    [
        (None, {"input_size": 32}, "--num-channels 3, --mean 0.485,0.456,0.406, --std 0.229,0.224,0.225"),
        ({"input_size": (3, 32, 32)}, {"std": (1, 1, 1)}, "--mean 0.485,0.456,0.406"),
    ],
    ids=["options", "both"],
)
def test_what_is_known_is_not_told_of(declared: Any, options: dict[str, Any], assumed: str) -> None:
    (said,) = describe(declared, **options)[1]
    assert said.endswith(f"assumed: {assumed}.")


def test_an_artifact_ranks_above_the_declaration() -> None:
    spec, *said = describe(DECLARED, RECORDED)
    assert (spec.size, spec.mean, spec.std) == (48, (0.1,), (0.3,))
    assert (spec.resize_size, spec.interpolation, said) == (60, "bicubic", [[], []])


def test_an_option_ranks_above_the_artifact_with_a_warning() -> None:
    spec, notes, said = describe(None, RECORDED, input_size=64, mean=(0.1,), std=(0.25,))
    assert (spec.size, spec.std) == (64, (0.25,))
    assert notes == []
    assert said == [
        "--input-size 64 is not the 48 that folder q was made with: 64 is used.",
        "--std 0.25 is not the 0.3 that folder q was made with: 0.25 is used.",
    ]


def test_an_oblong_image() -> None:
    oblong = {**DECLARED, "input_size": (1, 128, 256)}
    spec = describe(oblong)[0]
    assert (spec.shape, spec.resize_size) == ((1, 128, 256), (160, 320))
    assert describe(oblong, input_size=128)[0].resize_size == 160
    assert describe(oblong, input_size="64x96")[0].resize_size == (80, 120)
    assert describe(oblong, RECORDED)[0].size == 48


def test_assumed_and_recorded_oblong_images_are_told_as_options_have_them() -> None:
    recorded = replace(RECORDED, input=RECORDED.input.model_copy(update={"size": (24, 94)}))
    assert describe(None, recorded)[0].shape[1:] == (24, 94)
    said = describe(None, recorded, input_size="94x24")[2]
    assert "--input-size 94x24 is not the 24x94 that folder q was made with: 94x24 is used." in said


def test_what_genie_does_not_have_is_told() -> None:
    spec, _, said = describe({**DECLARED, "interpolation": "lanczos", "crop_mode": "squash"})
    assert spec.interpolation == "bicubic"
    assert [line.split(":")[0] for line in said] == [
        "the network declares interpolation 'lanczos'",
        "the network declares crop_mode 'squash'",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [("input_size", 224), ("input_size", (3, 224)), ("input_size", (3, 0, 0)), ("mean", "half"), ("crop_pct", 0),
     ("crop_pct", 1.5), ("crop_pct", "most")],
)  # fmt: skip
def test_a_declaration_that_cannot_be_used_is_named(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"declares {key} = .* in its pretrained_cfg, which must be"):
        describe({**DECLARED, key: value})


def test_channels_need_values_of_their_number() -> None:
    with pytest.raises(UsageError, match=r"--mean has 3 value\(s\) for a network of 1 channel"):
        describe(None, num_channels=1)
