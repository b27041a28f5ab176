"""Runs that differ only in their seed as one row: mean and spread."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from genie_cli.errors import InputError

COLUMNS = (
    "scheme", "model", "preset", "protocol", "weight_bits", "activation_bits", "runs",
    "top1", "top1_std", "teacher_top1", "drop", "agreement", "top5", "num_images",
)  # fmt: skip
FACTS = ("model", "preset", "protocol", "weight_bits", "activation_bits", "num_images")
"""Facts that all runs of one row share."""
_SEED = "(?:seed|s)([0-9]+)"
_SEPARATOR = r"((?:[-_/ ]|\.(?![0-9]))+)"
"""Separator between the parts of a name; the decimal point of a number is not one."""
_MEANS = ("top1", "teacher_top1", "drop", "agreement", "top5")


def over_seeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for the rows of `comparison.read_rows` whose schemes differ only in ``seed<digits>`` or ``s<digits>``.

    The row's name leaves that part out. The row holds the means, the number of `runs`, and `top1_std`, the
    sample standard deviation (None for one run). A figure that a run lacks has no mean. Rows keep the order
    of their first runs, and no figure depends on the order of the runs.

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
    figures: dict[str, Any] = {"scheme": scheme, "runs": len(runs), **{fact: runs[0][fact] for fact in FACTS}}
    for key in _MEANS:  # exact: the mean of equal figures is that figure
        values = [run[key] for run in runs]
        figures[key] = None if None in values else mean(values)
    figures["top1_std"] = stdev(run["top1"] for run in runs) if len(runs) > 1 else None
    return {column: figures[column] for column in COLUMNS}
