"""Sizes of images as people write them, on the command line and in params files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genie_cli.commands.options import model_config, split_networks
from genie_cli.config import InputSpec, read_params
from genie_cli.config.image_size import LARGEST, height_and_width, parse_image_size, size_text
from genie_cli.errors import UsageError

SIDES = st.integers(1, LARGEST)


@given(SIDES, SIDES)
def test_a_size_is_read_as_it_is_written(height: int, width: int) -> None:
    size = parse_image_size((height, width))
    assert height_and_width(size) == (height, width)
    assert parse_image_size(size_text(size)) == size
    assert isinstance(size, int) == (height == width)
    spec = InputSpec(size=(height, width))
    assert spec.shape == (3, height, width)
    assert InputSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("text", "size"), [("224", 224), ("360x480", (360, 480)), ('"24X94"', (24, 94)), ("[24, 94]", (24, 94))]
)
def test_a_size_in_a_params_file(tmp_path: Path, text: str, size: int | tuple[int, int]) -> None:
    (tmp_path / "params.yaml").write_text(f"model: {{name: resnet18, input_size: {text}}}\n")
    assert model_config(read_params(tmp_path / "params.yaml"), {}).input_size == size


@pytest.mark.parametrize(
    "value", ["", "x", "0", "-3", "3x", "3x4x5", "4.5", 4.5, True, [3, 4, 5], [], "65537", "3 x 4"]
)
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(UsageError, match=r"input_size = .* cannot be used.*360x480"):
        model_config(read_params(None), {"name": "resnet18", "input_size": value})


def test_class_scores_are_named_for_the_first_network_alone() -> None:
    flags = {"name": ["a", "b"], "weights": [], "logits": "cls", "input_size": "24x94"}
    first, others = split_networks(flags)
    assert first["logits"] == "cls" and others is not None
    assert [("logits" in other, other["input_size"]) for other in others] == [(False, "24x94")]
