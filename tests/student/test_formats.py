"""Number formats: ranges of the codes, text, equality, and fields that do not fit together."""

from __future__ import annotations

import dataclasses
import doctest
from typing import Any

import pytest

from genie_cli.student import formats
from genie_cli.student.formats import NumberFormat, activation_format, weight_format


@pytest.mark.parametrize(
    ("bits", "signed", "expected"),
    [
        (1, False, (0, 1)),
        (2, False, (0, 3)),
        (4, False, (0, 15)),
        (8, False, (0, 255)),
        (16, False, (0, 65535)),
        (2, True, (-2, 1)),
        (8, True, (-128, 127)),
        (16, True, (-32768, 32767)),
    ],
)
def test_range_of_the_codes(bits: int, signed: bool, expected: tuple[int, int]) -> None:
    format = activation_format(bits, signed)
    assert (format.quant_min, format.quant_max) == expected


def test_formats_of_today() -> None:
    assert weight_format(3) == NumberFormat(3, False, False, "per channel", 0)
    assert weight_format(3, "symmetric") == NumberFormat(3, True, True, "per channel", 0)
    assert activation_format(5, signed=True) == NumberFormat(5, True, True, "per tensor", None)


@pytest.mark.parametrize(
    ("format", "text"),
    [
        (weight_format(4), "uint4 per channel, axis 0, asymmetric"),
        (NumberFormat(8, True, True, "per channel", 1), "int8 per channel, axis 1, symmetric"),
        (activation_format(16, signed=False), "uint16 per tensor, symmetric"),
        (activation_format(8, signed=True), "int8 per tensor, symmetric"),
    ],
)
def test_text(format: NumberFormat, text: str) -> None:
    assert str(format) == text


def test_examples_of_the_docstring() -> None:
    assert doctest.testmod(formats) == (0, 3)


def test_a_table_can_be_keyed_by_formats() -> None:
    table = {weight_format(4): "w", activation_format(4, True): "signed", activation_format(4, False): "unsigned"}
    assert len(table) == 3
    assert table[weight_format(4)] == "w"
    assert table[activation_format(4, False)] == "unsigned"
    assert weight_format(5) not in table
    with pytest.raises(dataclasses.FrozenInstanceError):
        weight_format(4).bits = 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 0}, "bits must be 1 or more, got 0"),
        ({"axis": None}, "axis must be given per channel and None per tensor, got None per channel"),
        ({"granularity": "per tensor"}, "axis must be given per channel and None per tensor, got 0 per tensor"),
        ({"axis": -1}, "axis must be 0 or more, got -1"),
    ],
)
def test_fields_that_do_not_fit_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(weight_format(4), **changes)
