"""Tables of bits as files: read, written, refused with the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genie_cli.config import QuantizeConfig, build
from genie_cli.config.bit_table import BitTable, gives_table, read_bit_table
from genie_cli.errors import InputError, UsageError

NAMES = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=12)


@given(
    weights=st.dictionaries(NAMES, st.integers(2, 8), max_size=4),
    activations=st.dictionaries(NAMES, st.one_of(st.none(), st.integers(2, 16)), max_size=4),
)
def test_a_table_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, weights: dict[str, int], activations: dict[str, int | None]
) -> None:
    table = BitTable(weights=weights, activations=activations)
    path = tmp_path_factory.mktemp("table") / "bits.yaml"
    path.write_text(table.text("found by a search\nof two lines"), encoding="utf-8")
    found = read_bit_table(path)
    assert found == table
    assert list(found.weights) == list(weights) and list(found.activations) == list(activations)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("weights: {conv1: 9}", "at 'weights.conv1' = 9"),
        ("weights: {conv1: 1}", "at 'weights.conv1' = 1"),
        ("weights: {conv1: none}", "at 'weights.conv1' = 'none'"),
        ("activations: {fc.input: 17}", "at 'activations.fc.input' = 17"),
        ("sites: {fc.input: 4}", "at 'sites'"),
        ("weights: [4, 4]", "at 'weights'"),
        ("[weights]", "holds no table of bits"),
        ("", "holds no table of bits"),
        ("weights: {", "is not valid YAML: line 1"),
    ],
)
def test_what_is_no_table_is_refused_with_its_place(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "bits.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as raised:
        read_bit_table(path)
    assert str(path) in str(raised.value)
    assert told in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bits\.yaml cannot be read: No such file"):
        build(QuantizeConfig, {"bits_override": str(tmp_path / "bits.yaml")})


@pytest.mark.parametrize("key", ["bits_override", "bits_table"])
def test_a_configuration_takes_a_file_or_its_content(tmp_path: Path, key: str) -> None:
    content: dict[str, Any] = {"weights": {"fc": 3}, "activations": {"fc.input": None}}
    path = tmp_path / "bits.yaml"
    path.write_text("weights:\n  fc: 3\nactivations:\n  fc.input: none\n")
    table = BitTable(**content)
    for value in (content, str(path), path):
        config = build(QuantizeConfig, {key: value})
        assert config.bits_table == table and config.bits_override is None


def test_a_table_is_not_recorded_and_patterns_are() -> None:
    table = BitTable(weights={"fc": 3})
    assert QuantizeConfig(bits_table=table).determining() == QuantizeConfig().determining()
    both = QuantizeConfig(bits_table=table, bits_override={"fc": (8, 8)})
    assert both.determining()["bits_override"] == {"fc": [8, 8]}


def test_activations_of_a_table_are_something_to_learn() -> None:
    nearest = {"rounding": "nearest", "activation_bits": None}
    assert build(QuantizeConfig, {**nearest, "bits_table": {"activations": {"fc.input": 4}}}).bits_table is not None
    with pytest.raises(UsageError, match="leaves nothing to learn"):
        build(QuantizeConfig, {**nearest, "bits_table": {"activations": {"fc.input": "none"}}})


@pytest.mark.parametrize(
    "value", ["fc", {"fc": {"a": 8}}, {"weights": [8, 8]}, {}, [8, 8], {"weights": {}, "fc": [8, 8]}]
)
def test_overrides_are_not_taken_for_a_table(value: Any) -> None:
    assert not gives_table(value)
