"""The text of ``--bits-override``: its form, its bounds, its order."""

from __future__ import annotations

import pytest

from genie_cli.commands.bits_override import override_keys, parse_override, parse_overrides
from genie_cli.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("layer1.*=8,8", ("layer1.*", 8, 8)),
        ("fc=8,4", ("fc", 8, 4)),
        (" *.conv[12] = 2 , 3 ", ("*.conv[12]", 2, 3)),
        ("a=b=4,4", ("a=b", 4, 4)),
        ("fc=8,16", ("fc", 8, 16)),
        ("fc=8,None", ("fc", 8, None)),
    ],
)
def test_form(text: str, expected: tuple[str, int, int | None]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "fc", "fc=", "=8,8", " =8,8", "fc=8", "fc=8,", "fc=,8", "fc=8,8,8", "fc=8;8", "fc=a,b", "fc=4.0,4", "fc=-4,4",
     "8,8", "fc=٤,4", "fc:8,8", "fc=0x4,4", "fc=none,4", "fc=4,all"],
)  # fmt: skip
def test_other_forms_are_refused_with_the_form(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_override(text)
    assert f"--bits-override {text!r} must be PATTERN=W,A" in str(raised.value)
    assert "'layer1.*=8,8'" in str(raised.value)


@pytest.mark.parametrize("bits", ["1", "17", "0", "32", "9" * 5000])
@pytest.mark.parametrize(("form", "most"), [("fc={},4", 8), ("fc=4,{}", 16)])
def test_bits_out_of_range_are_named(form: str, most: int, bits: str) -> None:
    with pytest.raises(UsageError, match=rf"{bits} bits are not in 2\.\.{most}; give PATTERN=W,A"):
        parse_override(form.format(bits))


def test_several_keep_their_order_and_the_last_of_one_pattern_counts() -> None:
    assert parse_overrides(None) is None
    assert parse_overrides([]) == {}
    overrides = parse_overrides(["fc=2,2", "*=3,3", "fc=8,8"])
    assert overrides is not None
    assert list(overrides.items()) == [("*", (3, 3)), ("fc", (8, 8))]


def test_a_file_is_a_table_and_patterns_stand_beside_it() -> None:
    assert override_keys(None) == {}
    assert override_keys(["fc=8,8"]) == {"bits_override": {"fc": (8, 8)}}
    assert override_keys(["out/bits.yaml"]) == {"bits_table": "out/bits.yaml"}
    assert override_keys(["fc=8,8", "b.yml"]) == {"bits_override": {"fc": (8, 8)}, "bits_table": "b.yml"}
    with pytest.raises(UsageError, match=r"takes one file, it was given a\.yaml, b\.yaml"):
        override_keys(["a.yaml", "b.yaml"])
