"""The keys of a metrics file: facts of the run, and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FACTS = ("model", "metric", "preset", "protocol", "weight_bits", "activation_bits", "num_images")
"""Facts of a run; all other numbers of a metrics file are figures."""
NUM_BYTES = "num_bytes"
"""The size of the quantized folder on the disk: a fact that may differ between seeds."""
HASHES = ("data_sha256", "metric_sha256", "decode_sha256", "quantized_sha256")
"""Hashes of the files of code that took part, and of the tensors of the quantized network that was measured."""
PER_CLASS, OUTPUTS = "per_class", "outputs"
"""Figures of each class, and of each output."""
DROP, AGREEMENT = "drop", "agreement"
"""The teacher's most important figure minus the network's own; the share of equal decisions."""
IN_PERCENT = ("classification", "segmentation", "detection")
"""Metrics whose figures are percentages."""


CLASSIFICATION = ("top1", "teacher_top1", DROP, AGREEMENT, "top5")
"""Figures of a classification, in the order of tables."""
_RUN = ("scheme", "method", "bits", "runs")
"""Keys that tables add to a row."""


def figures_of(row: Mapping[str, Any]) -> list[str]:
    """The names of the figures in a row of a table, in its order; the first one is the most important."""
    return [key for key in row if key not in (*_RUN, *FACTS, NUM_BYTES)]


def spread_key(figure: str) -> str:
    """The key of the sample standard deviation over runs."""
    return f"{figure}_std"


def teacher_key(figure: str) -> str:
    """The key of the teacher's value."""
    return f"teacher_{figure}"


def drop_key(figure: str, is_first: bool) -> str:
    """The key of the difference, the teacher's value minus the network's own."""
    return DROP if is_first else f"{DROP}_{figure}"


def is_reserved(name: str) -> bool:
    """True if a figure cannot have this name."""
    return name in (*FACTS, NUM_BYTES, *HASHES, PER_CLASS, OUTPUTS, DROP, AGREEMENT) or name.startswith(
        ("teacher_", f"{DROP}_")
    )
