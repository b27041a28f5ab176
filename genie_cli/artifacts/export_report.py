"""The report beside an exported file: its name, and its agreement in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SUFFIX = ".export.json"


def report_path(path: Path) -> Path:
    """The path of a file's report: ``model.onnx.export.json`` beside ``model.onnx``."""
    return path.with_name(path.name + SUFFIX)


def exported_file(path: Path, report: Mapping[str, Any]) -> str:
    """The name of the file that a report is of; earlier versions left out its ending: ``model.export.json``."""
    name, ending = path.name.removesuffix(SUFFIX), f".{report.get('format', '')}".rstrip(".")
    return name if name.endswith(ending) else name + ending


def described_agreement(report: Mapping[str, Any]) -> str:
    """The agreement that a report tells: the share of images, or of the values of the worst output."""
    share, images = f"{report['agreement']:.2%}", f"{report.get('num_images')} images"
    worst = report.get("agreement_of")
    if worst in (None, report.get("logits")):
        return f"{share} of {images}"
    return f"{share} of the values of '{worst}', {images}"
