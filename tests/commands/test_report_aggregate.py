"""``genie report --over-seeds`` and ``--by-bits``: the files and what is shown."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

TOP1 = {"w4a4": [91.0, 92.0, 91.5], "w2a4": [84.0, 85.5, 83.0]}


def save(name: str, top1: float, bits: tuple[int, int] = (4, 4), **changes: Any) -> None:
    figures = {
        "model": "cifar_resnet20", "preset": "genie-m", "protocol": "genie", "top1": top1, "teacher_top1": 92.6,
        "drop": 92.6 - top1, "agreement": top1 + 1, "num_images": 10000, "weight_bits": bits[0],
        "activation_bits": bits[1],
    }  # fmt: skip
    Path("m").mkdir(exist_ok=True)
    Path("m", f"{name}.json").write_text(json.dumps({**figures, **changes}))


@pytest.fixture(autouse=True)
def runs() -> None:
    for bits, values in TOP1.items():
        for seed, top1 in enumerate(values):
            save(f"resnet20-{bits}-genie-seed{seed}", top1, (int(bits[1]), 4))
    save("resnet20-w2a4-minmax", 55.0, (2, 4), preset="minmax")


def read_csv(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_over_seeds(genie: Any) -> None:
    result = genie("report", "m", "--over-seeds")
    shown = [line.split() for line in result.stdout.splitlines()]
    assert shown[2] == ["resnet20-w2a4-genie", "2", "4", "3", "84.17", "±", "1.26", "8.43", "85.17"]
    assert shown[3] == ["resnet20-w2a4-minmax", "2", "4", "1", "55.00", "37.60", "56.00"]
    assert result.stderr == "Written to report: table.md, table.json, table.csv, figures.json\n"
    lines = Path("report/table.md").read_text().splitlines()
    assert lines[:3] == [
        "Model: cifar_resnet20",
        "",
        "| scheme | preset | protocol | weight_bits | activation_bits | runs | top1 | top1_std | teacher_top1 | drop "
        "| agreement | num_images |",
    ]
    row = "| resnet20-w4a4-genie | genie-m | genie | 4 | 4 | 3 | 91.50 | 0.50 | 92.60 | 1.10 | 92.50 | 10000 |"
    assert lines[-1] == row
    assert list(json.loads(Path("report/table.json").read_text())) == [
        "resnet20-w2a4-genie", "resnet20-w2a4-minmax", "resnet20-w4a4-genie",
    ]  # fmt: skip
    read = {row["scheme"]: row for row in read_csv("report/table.csv")}
    for bits, values in TOP1.items():
        row = read[f"resnet20-{bits}-genie"]
        assert float(row["top1"]) == mean(values)
        assert float(row["top1_std"]) == stdev(values)
        assert (row["runs"], row["weight_bits"], row["preset"]) == ("3", bits[1], "genie-m")
    assert (read["resnet20-w2a4-minmax"]["runs"], read["resnet20-w2a4-minmax"]["top1_std"]) == ("1", "")


def test_by_bits_over_seeds(genie: Any) -> None:
    result = genie("report", "m", "--over-seeds", "--by-bits", "--out", "r")
    assert [line.split() for line in result.stdout.splitlines()[1:]] == [
        ["scheme", "W4A4", "W2A4"],
        ["resnet20-genie", "91.50", "±", "0.50", "84.17", "±", "1.26"],
        ["resnet20-minmax", "55.00"],
    ]
    assert Path("r/table.md").read_text(encoding="utf-8") == (
        "Model: cifar_resnet20\n\n"
        "| scheme | W4A4 | W2A4 |\n"
        "| :-- | --: | --: |\n"
        "| resnet20-genie | 91.50 ± 0.50 | 84.17 ± 1.26 |\n"
        "| resnet20-minmax |  | 55.00 |\n\n"
        "Top-1 accuracy in %: mean ± sample standard deviation of 3 runs; figures without ± are one run.\n"
    )
    loaded = json.loads(Path("r/table.json").read_text())
    assert loaded["resnet20-genie"]["W4A4"]["top1"] == 91.5
    assert loaded["resnet20-genie"]["W4A4"]["runs"] == 3
    assert "W4A4" not in loaded["resnet20-minmax"]
    rows = read_csv("r/table.csv")
    assert [(row["scheme"], row["method"], row["bits"], row["runs"]) for row in rows] == [
        ("resnet20-w2a4-genie", "resnet20-genie", "W2A4", "3"),
        ("resnet20-w2a4-minmax", "resnet20-minmax", "W2A4", "1"),
        ("resnet20-w4a4-genie", "resnet20-genie", "W4A4", "3"),
    ]


def test_by_bits_of_single_runs_and_several_models(genie: Any) -> None:
    save("resnet56-w4a4-genie", 93.0, model="cifar_resnet56")
    result = genie("report", "m", "--by-bits")
    assert result.stdout.splitlines()[0] == "Top-1 accuracy in %."
    lines = Path("report/table.md").read_text().splitlines()
    assert lines[0] == "| scheme | model | W4A4 | W2A4 |"
    assert "| resnet20-genie-seed1 | cifar_resnet20 | 92.00 | 85.50 |" in lines
    assert "| resnet56-genie | cifar_resnet56 | 93.00 |  |" in lines
    assert list(read_csv("report/table.csv")[0])[-2:] == ["method", "bits"]
    assert "runs" not in read_csv("report/table.csv")[0]


@pytest.mark.parametrize("options", [["--over-seeds"], ["--by-bits"], ["--over-seeds", "--by-bits"]])
def test_the_same_files_give_the_same_bytes(genie: Any, options: list[str]) -> None:
    for out in ("first", "second"):
        genie("report", "m", *options, "--out", out)
    for name in ("table.md", "table.json", "table.csv"):
        assert Path("first", name).read_bytes() == Path("second", name).read_bytes()


def test_without_options_seeds_are_rows(genie: Any) -> None:
    genie("report", "m")
    rows = read_csv("report/table.csv")
    assert len(rows) == 7
    assert list(rows[0])[-1] == "num_images" and "runs" not in rows[0]


def test_sizes_are_shown_where_they_are_wanted(genie: Any) -> None:
    for seed, size in enumerate((99_000, 99_010)):
        save(f"mixed-w2a4-seed{seed}", 86.0, (2, 4), num_bytes=size)
    assert "99005" not in genie("report", "m", "--over-seeds", "--out", "without").stdout
    assert "99005" in genie("report", "m", "--over-seeds", "--with-size", "--out", "with").stdout
    sizes = {row["scheme"]: row["num_bytes"] for row in read_csv("with/table.csv")}
    assert sizes["mixed-w2a4"] == "99005" and sizes["resnet20-w2a4-genie"] == ""
    genie("report", "m", "--over-seeds", "--by-bits", "--with-size", "--out", "bits")
    assert {row["num_bytes"] for row in read_csv("bits/table.csv") if row["method"] == "mixed"} == {"99005"}
