"""Runs over seeds as one row: means, spreads, names, and runs that are not one."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genie_cli.errors import InputError
from genie_cli.evaluation import comparison
from genie_cli.evaluation.aggregation import over_seeds
from genie_cli.evaluation.keys import FACTS

FIGURES = {
    "model": "cifar_resnet20", "metric": "classification", "preset": "genie-m", "protocol": "genie",
    "weight_bits": 2, "activation_bits": 4,
    "num_images": 10000, "top1": 84.25, "top5": 99.0, "teacher_top1": 92.6, "drop": 8.35, "agreement": 85.5,
}  # fmt: skip


def run(scheme: str, **changes: Any) -> dict[str, Any]:
    return {**{key: FIGURES.get(key) for key in comparison.COLUMNS}, "scheme": scheme, **changes}


def groups(*names: str) -> dict[str, int]:
    return {row["scheme"]: row["runs"] for row in over_seeds([run(name) for name in names])}


# --- figures


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=8))
def test_mean_and_spread_are_those_of_numpy(top1: list[float]) -> None:
    (row,) = over_seeds([run(f"a-seed{seed}", top1=value, drop=100 - value) for seed, value in enumerate(top1)])
    assert row["runs"] == len(top1)
    assert row["top1"] == pytest.approx(np.mean(top1))
    assert row["top1_std"] == pytest.approx(np.std(top1, ddof=1), abs=1e-9)
    assert row["drop"] == pytest.approx(np.mean([100 - value for value in top1]), abs=1e-9)
    assert (row["teacher_top1"], row["agreement"], row["top5"]) == (92.6, 85.5, 99.0)


def test_a_row_holds_the_facts_of_its_runs() -> None:
    (row,) = over_seeds([run("w2a4-seed0", top1=84), run("w2a4-seed1", top1=85)])
    assert row == {**run("w2a4"), "top1": 84.5, "top1_std": pytest.approx(0.5**0.5), "runs": 2}
    assert [key for key in row if key not in ("runs", "top1_std")] == list(comparison.COLUMNS)
    assert list(row)[7:10] == ["runs", "top1", "top1_std"]


def test_one_run_has_no_spread() -> None:
    (row,) = over_seeds([run("a-seed3", top1=84.123456789)])
    assert (row["runs"], row["top1"], row["top1_std"]) == (1, 84.123456789, None)


def test_a_figure_that_a_run_lacks_has_no_mean() -> None:
    (row,) = over_seeds([run("a-seed0"), run("a-seed1", agreement=None)])
    assert (row["agreement"], row["top5"]) == (None, 99.0)


def test_the_order_of_runs_changes_no_figure() -> None:
    random.seed(0)
    runs = [run(f"a-seed{seed}", top1=random.random() * 10**seed) for seed in range(4)]
    assert len({json.dumps(over_seeds(list(order))) for order in itertools.permutations(runs)}) == 1


# --- names


def test_rows_come_in_the_order_of_their_first_runs() -> None:
    names = ["b-seed1", "a-seed0", "b-seed0", "c", "a-seed1"]
    assert list(groups(*names)) == ["b", "a", "c"]
    assert list(groups(*names).values()) == [2, 2, 1]


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("resnet20-w2a4-genie-seed0", "resnet20-w2a4-genie"),
        ("resnet20-w2a4-s12", "resnet20-w2a4"),
        ("resnet20_seed1_w2a4", "resnet20_w2a4"),
        ("seed7-w2a4/genie", "w2a4/genie"),
        ("w2a4/seed7", "w2a4"),
        ("runs/w2a4.seed7.json", "runs/w2a4.json"),
        ("a--seed7", "a"),
        ("A-SEED7", "A"),
        ("images-seed1-quantize-seed2", "images-quantize"),
        ("seed3", "genie-m"),
        ("seeds-s3x-us3-seed-s3.5", "seeds-s3x-us3-seed-s3.5"),
        ("/a/b c/x", "/a/b c/x"),
        ("", "genie-m"),
    ],
)
def test_names_without_their_seed(name: str, scheme: str) -> None:
    assert groups(name) == {scheme: 1}


def test_a_teacher_that_is_only_a_seed() -> None:
    (row,) = over_seeds([run("seed0", preset=None)])
    assert row["scheme"] == "teacher"


@settings(deadline=None)
@given(st.text("ab1.-_/ ", max_size=12))
def test_a_name_without_a_seed_stays(name: str) -> None:
    assert groups(name) == {name or "genie-m": 1}


# --- runs that are not one


@pytest.mark.parametrize(
    "fact", ["model", "metric", "preset", "protocol", "weight_bits", "activation_bits", "num_images"]
)
@pytest.mark.parametrize("other", [None, "9"])
def test_runs_that_differ_in_more_than_the_seed(fact: str, other: str | None) -> None:
    with pytest.raises(InputError, match=f"'a-seed0' and 'a-seed2' differ in more than the seed: their {fact} is") as e:
        over_seeds([run("a-seed0"), run("a-seed1"), run("a-seed2", **{fact: other})])
    assert f"{FIGURES[fact]} and {other or 'unknown'}" in str(e.value)


@pytest.mark.parametrize(
    "names", [("a-s1", "a-seed1"), ("a-seed1", "a-seed01"), ("a-seed1", "seed1-a"), ("a", "a-s1"), ("a-s1", "a")]
)
def test_runs_whose_seeds_are_not_told_apart(names: tuple[str, str]) -> None:
    with pytest.raises(InputError) as caught:
        over_seeds([run("b"), *map(run, names)])
    assert str(caught.value).startswith(f"Runs {names[0]!r} and {names[1]!r} are both 'a'")


def test_figures_of_another_metric_and_the_spread_of_the_first() -> None:
    figures = {"metric": "segmentation", "miou": 57.0, "teacher_miou": 58.0, "drop": 1.0}
    facts = {"scheme": "", **dict.fromkeys(FACTS)}
    runs = [{**facts, **figures, "scheme": f"a-seed{seed}", "miou": 57.0 + seed, "num_images": 59} for seed in (0, 2)]
    (row,) = over_seeds(runs)
    assert list(row) == [
        "scheme", "model", "metric", "preset", "protocol", "weight_bits", "activation_bits", "runs", "miou", "miou_std",
        "teacher_miou", "drop", "num_images",
    ]  # fmt: skip
    assert (row["miou"], row["teacher_miou"], row["num_images"]) == (58.0, 58.0, 59)
    assert row["miou_std"] == pytest.approx(2**0.5)


def test_runs_of_two_metrics_are_not_one() -> None:
    with pytest.raises(InputError, match="their metric is classification and segmentation"):
        over_seeds([run("a-seed0"), run("a-seed1", metric="segmentation")])


def test_sizes_may_differ_between_seeds_and_are_no_figure() -> None:
    (row,) = over_seeds([run(f"a-seed{seed}", num_bytes=size) for seed, size in enumerate((1000, 1003))])
    assert row["num_bytes"] == 1002 and "num_bytes_std" not in row
    (row,) = over_seeds([run(f"a-seed{seed}", num_bytes=size) for seed, size in enumerate((1000, None))])
    assert row["num_bytes"] is None
