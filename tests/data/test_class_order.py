"""Class folders that are numbered: a warning as text, the numbers' order when it is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genie_cli.config import InputSpec
from genie_cli.data.class_order import in_order, order_warnings
from genie_cli.data.sources import open_data

SPEC = InputSpec(num_channels=1, size=8, mean=(0.0,), std=(1.0,))


@pytest.mark.parametrize(
    ("names", "natural"),
    [
        (["0", "1", "10", "2"], ["0", "1", "2", "10"]),
        (["fold10_a", "fold10_b", "fold9_z"], ["fold9_z", "fold10_a", "fold10_b"]),
        (["a", "1", "b2", "b"], ["1", "a", "b", "b2"]),
        (["1.10", "1.9"], ["1.9", "1.10"]),
        (["01", "1", "001"], ["001", "01", "1"]),
    ],
)
def test_natural_order(names: list[str], natural: list[str]) -> None:
    assert in_order(names, "natural") == natural
    assert in_order(names, "text") == sorted(names)


@pytest.mark.parametrize("names", [["00", "01", "10"], ["n01440764", "n02102040"], ["cat", "dog"], [], ["1", "2"]])
def test_no_warning_where_both_orders_are_one(names: list[str]) -> None:
    assert order_warnings(names) == ()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label in range(12):
        (tmp_path / str(label)).mkdir()
        Image.fromarray(np.full((8, 8), label, np.uint8)).save(tmp_path / str(label) / "a.png")
    return tmp_path


def warnings(folder: Path, **options: object) -> tuple[list[int], tuple[str, ...]]:
    """Brightness by label, and what is said."""
    images = open_data(f"imagefolder:{folder}", SPEC, **options)
    return images.pixels(range(12)).amax((1, 2, 3)).tolist(), images.warnings


def test_numbered_folders_are_warned_of(folder: Path) -> None:
    values, (message,) = warnings(folder)
    assert values == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    assert "label 2 is '10', and by the numbers in their names it would be '2'. --class-order natural" in message


@pytest.mark.parametrize(("order", "third"), [("natural", 2), ("text", 10)])
def test_an_order_that_was_chosen_is_taken_without_a_word(order: str, third: int, folder: Path) -> None:
    values, messages = warnings(folder, class_order=order)
    assert (values[2], messages) == (third, ())


def test_images_to_learn_from_have_no_order(folder: Path) -> None:
    assert warnings(folder, train=True)[1] == ()
