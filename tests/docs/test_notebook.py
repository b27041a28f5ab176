"""The example notebook runs from its first cell to its last, and is stored without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quantize_without_data.ipynb"


def cells() -> list[dict[str, Any]]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def test_it_is_stored_without_outputs() -> None:
    assert len(cells()) > 5
    assert [cell for cell in cells() if cell["outputs"] or cell["execution_count"] is not None] == []


def test_its_cells_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(cells()):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), namespace)
    assert namespace["grid"].width > 3 * 8 * 16
    assert namespace["figures"]["agreement"] > 50
    assert namespace["report"]["agreement"] >= 0.98
    assert (namespace["answers"].argmax(1) == namespace["scores"].argmax(1).numpy()).mean() >= 0.75
    assert Path("model.onnx").stat().st_size > 0
