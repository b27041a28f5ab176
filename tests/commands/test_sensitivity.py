"""`genie sensitivity` on the command line: table, bars, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

DIGITS = ("--model", "digits_resnet")


@pytest.mark.parametrize("exact", [False, True])
def test_table_and_file(genie: Any, images: Path, exact: bool) -> None:
    options = (*DIGITS, "--images", images, "--num-images", 4, "--protocol", "ait", *(["--exact"] if exact else []))
    shown = genie("sensitivity", *options).stdout
    found = json.loads(Path("sensitivity.json").read_text())
    assert (found["method"], found["loss"], found["num_images"]) == ("exact" if exact else "estimate", "kl", 4)
    assert list(found["weights"]["fc"]) == [str(bits) for bits in range(2, 9)]
    assert {"layer2.0.conv1.input", "fc.input"} <= set(found["activations"]) and "conv1.input" not in found[
        "activations"
    ]
    lines = [line for line in shown.splitlines() if line.startswith(("layer", "conv1", "fc"))]
    bars = {line.split()[0]: line.count("█") for line in lines}
    assert set(bars) - {"layer"} == {*found["weights"], *found["activations"]}
    costs = {name: each["4"] for name, each in found["weights"].items()}
    assert bars[max(costs, key=costs.__getitem__)] == 24
    printed = genie("sensitivity", *options, "--json", "--out", "again.json").stdout
    assert json.loads(printed) == found
    assert Path("again.json").read_bytes() == Path("sensitivity.json").read_bytes()


def test_the_params_file_has_a_section(genie: Any, images: Path) -> None:
    Path("p.yaml").write_text(
        f"model: {{name: digits_resnet}}\nsensitivity: {{images: {images}, num_images: 2, protocol: hardware}}\n"
    )
    genie("sensitivity", "--params", "p.yaml", "--out", "s.json")
    found = json.loads(Path("s.json").read_text())
    assert found["protocol"] == "hardware" and "fc.output" in found["activations"]


def test_bad_input(genie: Any, images: Path) -> None:
    assert "--num-images 99" in genie("sensitivity", *DIGITS, "--images", images, "--num-images", 99, code=2).stderr
    assert "Unknown protocol" in genie("sensitivity", *DIGITS, "--images", images, "--protocol", "x", code=2).stderr
    assert "does not exist" in genie("sensitivity", *DIGITS, "--images", "absent.safetensors", code=3).stderr
    assert not Path("sensitivity.json").exists()
