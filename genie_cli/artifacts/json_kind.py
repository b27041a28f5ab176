"""Recognises the JSON files that genie's commands write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

JsonKind = Literal["evaluation", "export", "quantization", "performance"]

WRITERS: dict[JsonKind, str] = {
    "evaluation": "figures of 'genie evaluate --out'",
    "export": "the report of 'genie export'",
    "quantization": "figures of 'genie quantize' (metrics.json of its folder)",
    "performance": "seconds and memory of '--performance'",
}
"""Kind -> words for it."""


def json_kind(fields: Mapping[str, Any]) -> JsonKind | None:
    """The kind of a file, from the keys that it holds; None: not one of genie's."""
    if fields.get("kind") == "export" and "num_bytes" in fields:
        return "export"
    if "units" in fields and "preset" in fields:
        return "quantization"
    if "seconds" in fields and "peak_memory" in fields:
        return "performance"
    return "evaluation" if "num_images" in fields and ("metric" in fields or "top1" in fields) else None
