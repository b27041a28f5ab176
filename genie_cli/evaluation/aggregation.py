"""Runs that differ only in their seed as one row: mean and spread."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from genie_cli.errors import InputError
from genie_cli.evaluation.keys import FACTS, NUM_BYTES, figures_of, spread_key

_SEED = "(?:seed|s)([0-9]+)"
_SEPARATOR = r"((?:[-_/ ]|\.(?![0-9]))+)"
"""Separator between the parts of a name; the decimal point of a number is not one."""


def over_seeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for the rows of `comparison.read_rows` whose schemes differ only in ``seed<digits>`` or ``s<digits>``.

    The row's name leaves that part out. The row holds the means, the number of `runs`, and the sample standard
    deviation of the first figure, such as `top1_std` (None for one run). A figure that a run lacks has no mean. Rows
    keep the order of their first runs, and no figure depends on the order of the runs.

    Raises:
        InputError: runs of one row differ in more than the seed, or do not tell their seeds apart.
    """
    groups: dict[str, dict[tuple[int, ...], dict[str, Any]]] = {}
    for row in rows:
        scheme, parts = split_name(row, _SEED)
        runs = groups.setdefault(scheme, {})
        seed = tuple(int(part) for part in parts)
        if runs and (not seed or seed in runs or () in runs):
            other = runs.get(seed, next(iter(runs.values())))
            raise InputError(
                f"Runs {other['scheme']!r} and {row['scheme']!r} are both {scheme!r}, and their names do not tell "
                "two seeds apart: rename a metrics file, or leave one out."
            )
        runs[seed] = row
    return [_mean(scheme, list(runs.values())) for scheme, runs in groups.items()]


def split_name(row: dict[str, Any], part: str) -> tuple[str, list[str]]:
    """The row's scheme without the parts that the pattern `part` matches, and the text of the pattern's group in each.

    A scheme that consists of such parts alone is named after its preset.
    """
    pieces = re.split(_SEPARATOR, row["scheme"])
    kept: list[str] = []
    found: list[str] = []
    for separator, word in zip(["", *pieces[1::2]], pieces[::2], strict=True):
        match = re.fullmatch(part, word, re.IGNORECASE)
        if match:
            found.append(match[1])
        else:
            kept.append(separator + word if kept else word)
    return "".join(kept) or row["preset"] or "teacher", found


def check_same(rows: Sequence[dict[str, Any]], facts: Sequence[str], among: str) -> None:
    """Refuse rows that are to become one row and differ in `facts`.

    Raises:
        InputError: two rows differ; the message names them and the first fact.
    """
    first = rows[0]
    for row in rows:
        for fact in facts:
            if row[fact] != first[fact]:
                raise InputError(
                    f"Runs {first['scheme']!r} and {row['scheme']!r} differ in more than {among}: their {fact} is "
                    f"{_shown(first[fact])} and {_shown(row[fact])}. Give them different names, or leave one out."
                )


def _shown(fact: Any) -> str:
    return "unknown" if fact is None else str(fact)


def _mean(scheme: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    check_same(runs, FACTS, "the seed")
    row: dict[str, Any] = {"scheme": scheme, **{fact: runs[0][fact] for fact in FACTS if fact != "num_images"}}
    if NUM_BYTES in runs[0]:
        sizes = [run[NUM_BYTES] for run in runs]
        row[NUM_BYTES] = None if None in sizes else round(mean(sizes))
    row["runs"] = len(runs)
    for place, key in enumerate(figures_of(runs[0])):  # exact: the mean of equal figures is that figure
        values = [run.get(key) for run in runs]
        known = [value for value in values if value is not None]
        row[key] = mean(known) if len(known) == len(values) else None
        if place == 0:
            row[spread_key(key)] = stdev(known) if 1 < len(known) == len(values) else None
    return {**row, "num_images": runs[0]["num_images"]}
