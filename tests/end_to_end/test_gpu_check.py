"""The check for a GPU runs through on a CPU: what it calls still exists."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_the_gpu_check_runs_through_on_a_cpu(tmp_path: Path):
    out = tmp_path / "found.json"
    command = [
        sys.executable,
        str(CHECK),
        "--device",
        "cpu",
        "--tiny",
        "--slack",
        "10",
        "--skip",
        "compile",
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    found = {section["section"]: section for section in json.loads(out.read_text())["sections"]}
    assert done.returncode == 0, done.stdout[-3000:]
    assert {name for name, section in found.items() if section["status"] == "ok"} >= {
        "primitives",
        "graphs",
        "resume",
        "stores",
        "speed",
    }
    assert not [name for name, section in found.items() if section.get("errors")]
