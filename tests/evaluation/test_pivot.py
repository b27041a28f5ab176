"""The table with a column for each bit width."""

from __future__ import annotations

from typing import Any

import pytest

from genie_cli.errors import InputError
from genie_cli.evaluation import comparison
from genie_cli.evaluation.pivot import as_text, by_bits, caption, figures_only, with_bits


def run(scheme: str, weight_bits: int | None = 4, activation_bits: int | None = 4, **changes: Any) -> dict[str, Any]:
    figures = {"model": "resnet18", "preset": "genie-m", "protocol": "genie", "num_images": 10, "top1": 70.0}
    figures["metric"] = "classification"
    bits = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    return {**dict.fromkeys(comparison.COLUMNS), **figures, **bits, "scheme": scheme, **changes}


def names(*runs: dict[str, Any]) -> list[tuple[str, str]]:
    return [(row["method"], row["bits"]) for row in with_bits(runs)]


def text(*runs: dict[str, Any]) -> list[list[Any]]:
    columns, table = by_bits(with_bits(runs))
    return [["", *columns], *([row["scheme"], *(row[c] for c in columns)] for row in as_text(table, columns))]


def test_names_without_their_bits() -> None:
    runs = [run("resnet18-w4a4-genie"), run("w2a4/x", 2), run("W3A3", 3, 3), run("plain", 8, 8)]
    assert names(*runs) == [("resnet18-genie", "W4A4"), ("x", "W2A4"), ("genie-m", "W3A3"), ("plain", "W8A8")]


def test_a_teacher_has_all_bits() -> None:
    assert names(run("full", None, None, preset=None)) == [("full", "W32A32")]


def test_rows_keep_what_they_hold() -> None:
    runs = [run("a-w4a4"), run("a-w2a4", 2)]
    assert with_bits(runs) == [
        {**runs[0], "method": "a", "bits": "W4A4"},
        {**runs[1], "method": "a", "bits": "W2A4"},
    ]


def test_the_table() -> None:
    runs = [
        run("b-w2a2", 2, 2, top1=60.0, top1_std=None), run("b-w4a4", top1=71.204, top1_std=0.349),
        run("full", None, None, preset=None), run("a-w2a4", 2, top1=65.0), run("b-w2a4", 2, top1=66.0),
        run("a-w3a3", 3, 3, top1=9.0),
    ]  # fmt: skip
    assert text(*runs) == [
        ["", "W32A32", "W4A4", "W3A3", "W2A4", "W2A2"],
        ["b", None, "71.20 ± 0.35", None, "66.00", "60.00"],
        ["full", "70.00", None, None, None, None],
        ["a", None, None, "9.00", "65.00", None],
    ]


def test_figures_for_json() -> None:
    columns, table = by_bits(with_bits([run("a-w4a4", top1=1.0), run("b-w2a4", 2, top1=2.0)]))
    first, second = figures_only(table, columns)
    assert first["W4A4"]["top1"] == 1.0 and "W2A4" not in first
    assert second["W2A4"] == {
        "scheme": "b-w2a4", "weight_bits": 2, "activation_bits": 4, "top1": 2.0, "teacher_top1": None, "drop": None,
        "agreement": None, "top5": None,
    }  # fmt: skip
    assert {key: first[key] for key in list(first)[:6]} == {
        "scheme": "a", "model": "resnet18", "metric": "classification", "preset": "genie-m", "protocol": "genie",
        "num_images": 10,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("runs", "number"),
    [
        ([None], ""),
        ([1, 1], ""),
        ([3, 3], "of 3 runs."),
        ([3, 2, 5], "of 2 to 5 runs."),
        ([1, 3], "of 3 runs; figures without ± are one run."),
    ],
)
def test_the_caption_tells_the_number_of_runs(runs: list[int | None], number: str) -> None:
    told = caption([run("a", **({"runs": count} if count else {})) for count in runs])
    assert told == (
        f"Top-1 accuracy in %: mean ± sample standard deviation {number}" if number else "Top-1 accuracy in %."
    )


def test_cells_hold_the_first_figure_of_any_metric() -> None:
    fidelity = {"scheme": "a-w4a4", "model": None, "metric": "fidelity", "preset": None, "protocol": None}
    row = {**fidelity, "weight_bits": 4, "activation_bits": 4, "sqnr_db": 21.3456, "cosine": 0.99, "num_images": 2}
    assert text(row) == [["", "W4A4"], ["a", "21.35"]]
    assert caption(with_bits([row])) == "Signal-to-quantization-noise ratio in dB."
    own = {**row, "metric": "m.py:make", "dice": 0.5}
    del own["sqnr_db"], own["cosine"]
    assert caption([own]) == "dice."
    with pytest.raises(InputError, match=r"their metric is fidelity and m\.py:make"):
        with_bits([row, {**own, "scheme": "b-w4a4"}])


def test_a_name_is_a_name_and_no_claim_about_bits() -> None:
    """As after `dvc exp run -S` on the bits of a scheme: the table shows the bits that were used."""
    rows = with_bits([run("a-w3a3", 4, 4), run("a-w4a4", 4, 4), run("a-w2a2", 2, 2)])
    assert [(row["method"], row["bits"]) for row in rows] == [("a-w3a3", "W4A4"), ("a", "W4A4"), ("a", "W2A2")]
    assert with_bits([run("a-w4a4", None, None)])[0]["bits"] == "W32A32"


def test_two_rows_in_one_cell() -> None:
    with pytest.raises(InputError, match=r"'a-w4a4' and 'w4a4-a' are both 'a' at W4A4.*--over-seeds"):
        with_bits([run("a-w4a4"), run("w4a4-a")])


@pytest.mark.parametrize("fact", ["model", "preset", "protocol", "num_images"])
def test_a_row_of_different_things(fact: str) -> None:
    with pytest.raises(InputError, match=f"'a-w4a4' and 'a-w2a4' differ in more than the bits: their {fact} is"):
        by_bits(with_bits([run("a-w4a4"), run("a-w2a4", 2, **{fact: "other"})]))
