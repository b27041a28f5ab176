"""Short words for a run: its network, its bits and its most important figure."""

from __future__ import annotations

from genie_cli.evaluation.keys import IN_PERCENT, figures_of
from genie_cli.report.collect import ReportedRun


def model_of(run: ReportedRun) -> str:
    """The name of the network, as far as a file says it."""
    if run.quantized is not None:
        return run.quantized.metadata.teacher
    fields = run.evaluation or next(iter(run.exports.values()), {})
    return str(fields.get("model") or fields.get("teacher") or "")


def first_figure(run: ReportedRun) -> tuple[str, str, float | None]:
    """Metric, name and value of the most important figure."""
    if run.evaluation is None:
        return "", "", None
    row = run.figures
    first = figures_of(row)[0]
    return row["metric"], f"{first} %" if row["metric"] in IN_PERCENT else first, row[first]


def form_of(metric: str) -> str:
    """The format of a metric's figures."""
    return ".2f" if metric in IN_PERCENT else ".4g"


def bits_of(run: ReportedRun) -> str:
    """Bits of weights and activations, such as ``w4a4``."""
    config = run.quantized.metadata.config if run.quantized is not None else run.evaluation or {}
    weight, activation = config.get("weight_bits"), config.get("activation_bits")
    if isinstance(weight, dict) or weight is None:
        return ""
    return f"w{weight}" + (f"a{activation}" if activation is not None else "")
