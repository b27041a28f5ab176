"""``--max-unit-layers`` on the command line: units are shown, cut, named where they cannot be, and learned together."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

NETWORKS = """
import torch
from torch import nn
from tests.support.networks import CellNet as cells


class Patched(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.before(x)
        patches = self.two(self.one(x.reshape(-1, 4, 4, 8)).relu()).relu()
        return self.fc((patches.reshape(-1, 4, 8, 8) + x).mean((2, 3)))
"""
INPUT = ("--num-channels", "3", "--input-size", "8", "--mean", "0,0,0", "--std", "1,1,1")
QUANTIZE = (
    "quantize", "--images", "images.safetensors", "--num-steps", "4", "--batch-size", "8", "--device", "cpu",
    "--precision", "fp32", *INPUT,
)  # fmt: skip
CELLS = ("--model", "networks.py:cells", "--max-unit-layers", "2")
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def files(in_folder_of_its_own: None, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("networks.py").write_text(NETWORKS)
    pixels = torch.randint(0, 256, (12, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    save_file({"images": pixels, "labels": torch.zeros(12, dtype=torch.int64)}, "images.safetensors")


def test_inspect_shows_units_and_their_tensors(genie: Any) -> None:
    inspect = ("inspect", "networks.py:cells", *INPUT, "--max-unit-layers", 2)
    units = {unit["name"]: unit for unit in json.loads(genie(*inspect, "--json").stdout)["units"]}
    assert list(units) == ["stem", "side", "cells.0", "cells.1", "cells.2", "cells.3", "join", "fc"]
    assert {key: value for key, value in units["cells.2"].items() if key.startswith("num")} == {
        "num_inputs": 2, "num_outputs": 1, "num_passing": 4
    }  # fmt: skip
    assert re.search(r"cells\.2 +2 +1 +4 +cells\.2\.conv1, cells\.2\.conv2\n", genie(*inspect).stdout)


def test_units_of_a_run_are_those_of_the_limit(genie: Any) -> None:
    shown = genie(*QUANTIZE, *CELLS)
    assert "reconstruction units" not in shown.stderr  # none is above the limit
    units = json.loads(Path("quantized/metrics.json").read_bytes())["units"]
    assert [(unit["name"], unit["num_outputs"]) for unit in units][2:4] == [("cells.0", 1), ("cells.1", 1)]
    assert re.search(r"units +8\n", shown.stdout)


def test_a_unit_that_no_place_divides_is_named(genie: Any) -> None:
    told = " ".join(genie(*QUANTIZE, "--model", "networks.py:Patched", "--max-unit-layers", 1).stderr.split())
    assert "no cut brings these reconstruction units down to 1 layers" in told and "one (2 layers)" in told


@pytest.mark.slow
def test_two_processes_share_the_rows_of_every_tensor() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = ("torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port), "-m", "genie_cli")
    for out, module in (("one", ("genie_cli",)), ("two", several)):
        subprocess.run(
            [sys.executable, "-m", *module, *QUANTIZE, *CELLS, "--preset", "minmax", "--protocol", "ait", "--out", out],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
            timeout=300,
        )
    one, two = (json.loads(Path(out, "metrics.json").read_bytes()) for out in ("one", "two"))
    for own, other in zip(one["units"], two["units"], strict=True):
        assert other["relative_error"] == pytest.approx(own["relative_error"], rel=1e-3)
