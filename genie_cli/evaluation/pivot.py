"""The table as papers print it: a row for each method, a column for each bit width, one figure in the cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from genie_cli.errors import InputError
from genie_cli.evaluation.aggregation import check_same, split_name
from genie_cli.evaluation.comparison import shown_figure
from genie_cli.evaluation.keys import FACTS, figures_of, spread_key

LONG_COLUMNS = ("method", "bits")
"""Keys that `with_bits` adds to a row."""
_BITS = "(w[0-9]+a[0-9]+)"
_SHARED = tuple(fact for fact in FACTS if fact not in ("weight_bits", "activation_bits"))
_FLOAT = 32
"""Bits of a network that is not quantized."""
_TITLES = {
    "top1": "Top-1 accuracy in %",
    "miou": "Mean intersection over union in %",
    "map": "Mean average precision in %",
    "sqnr_db": "Signal-to-quantization-noise ratio in dB",
}
"""First figure of a metric -> its words; another one is called by its name."""


def with_bits(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with `bits` as W4A4 (W32A32: the teacher) and `method`, the scheme without its part ``w<d>a<d>``.

    The bits are those of the metrics. A name is a name: where its part says other bits, as after an experiment that
    changed them, the method keeps the whole name.

    Raises:
        InputError: rows of several metrics, or two rows that are one method at the same bits.
    """
    check_same(rows, ("metric",), "their bits")
    long: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        method, told = split_name(row, _BITS)
        weight_bits, activation_bits = _numbers(row)
        bits = f"W{weight_bits:g}A{activation_bits:g}"
        if any(name.upper() != bits for name in told):
            method = row["scheme"]
        same = long.get((method, bits))
        if same is not None:
            raise InputError(
                f"Rows {same['scheme']!r} and {row['scheme']!r} are both {method!r} at {bits}: rename a metrics file, "
                "leave one out, or give --over-seeds where they are seeds of one run."
            )
        long[method, bits] = {**row, "method": method, "bits": bits}
    return list(long.values())


def by_bits(long: Sequence[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns, most bits first, and a row for each method: the facts its runs share, and a row or None per column.

    Args:
        long: Rows of `with_bits`.

    Raises:
        InputError: the rows of one method differ in more than their bits.
    """
    columns = list(dict.fromkeys(row["bits"] for row in sorted(long, key=_numbers, reverse=True)))
    methods: dict[str, list[dict[str, Any]]] = {}
    for row in long:
        methods.setdefault(row["method"], []).append(row)
    table = []
    for method, rows in methods.items():
        check_same(rows, _SHARED, "the bits")
        cells = {row["bits"]: row for row in rows}
        shared = {fact: rows[0][fact] for fact in _SHARED}
        table.append({"scheme": method, **shared, **{bits: cells.get(bits) for bits in columns}})
    return columns, table


def figures_only(table: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of `by_bits` for JSON, without empty cells and without facts that a cell repeats."""
    twice = {*_SHARED, *LONG_COLUMNS}
    rows = []
    for row in table:
        cells = {bits: {k: v for k, v in row[bits].items() if k not in twice} for bits in columns if row[bits]}
        rows.append({"scheme": row["scheme"], **{fact: row[fact] for fact in _SHARED}, **cells})
    return rows


def as_text(table: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of `by_bits` with text in their cells: ``91.20 ± 0.35``, the mean alone for one run."""
    return [{**row, **{bits: row[bits] and mean_and_spread(row[bits]) for bits in columns}} for row in table]


def mean_and_spread(row: dict[str, Any]) -> str:
    """The row's first figure, and its spread where the row is of several runs."""
    first = figures_of(row)[0]
    value, spread = row[first], row.get(spread_key(first))
    if value is None:
        return "none"
    return shown_figure(row, value) + ("" if spread is None else f" ± {shown_figure(row, spread)}")


def caption(long: Sequence[dict[str, Any]]) -> str:
    """The table's caption: the statistic that its cells hold."""
    first = figures_of(long[0])[0]
    title = _TITLES.get(first, first)
    runs = {row.get("runs", 1) for row in long}
    several = sorted(runs - {1})
    if not several:
        return f"{title}."
    number = " to ".join(str(count) for count in dict.fromkeys((several[0], several[-1])))
    alone = "; figures without ± are one run" if 1 in runs else ""
    return f"{title}: mean ± sample standard deviation of {number} runs{alone}."


def _numbers(row: dict[str, Any]) -> tuple[float, float]:
    """Weight bits and activation bits."""
    weight_bits, activation_bits = row["weight_bits"], row["activation_bits"]
    return (_FLOAT if weight_bits is None else weight_bits), (_FLOAT if activation_bits is None else activation_bits)
