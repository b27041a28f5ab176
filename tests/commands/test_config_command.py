"""`genie config`: a file that is used as it stands, and one that pins everything; `genie presets`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from genie_cli.config import SECTIONS, read_params, stage_config
from genie_cli.quantization import presets as quantization
from genie_cli.synthesis import presets as synthesis

PRESETS = {"synthesize": synthesis, "quantize": quantization}
NEEDED = {"mixmix": {"other_teachers": [{"name": "resnet18"}]}, "zaq": {"student": "q"}}
EACH_PRESET = pytest.mark.parametrize(
    ("command", "preset"), [(command, name) for command, module in PRESETS.items() for name in module.PRESETS]
)


def printed(genie: Any, *args: str) -> Path:
    """The file that the command prints."""
    path = Path("section.yaml")
    path.write_text(genie("config", *args).stdout)
    return path


def configured(path: Path, command: str, **flags: Any) -> Any:
    """The configuration that a command makes of the file and its flags."""
    find_preset = PRESETS[command].find_preset if command in PRESETS else None
    return stage_config(SECTIONS[command], read_params(path).section(command), flags, find_preset, command)


@pytest.mark.parametrize("command", ["synthesize", "quantize", "evaluate"])
def test_file_as_it_stands_pins_nothing(genie: Any, command: str) -> None:
    path = printed(genie, command)
    assert read_params(path).section(command) == {}
    assert configured(path, command) == SECTIONS[command]()


@EACH_PRESET
def test_presets_are_themselves_over_the_file(genie: Any, command: str, preset: str) -> None:
    flags = {"preset": preset, **NEEDED.get(preset, {})}
    options = {**PRESETS[command].preset_options(preset), **flags}
    assert configured(printed(genie, command), command, **flags) == SECTIONS[command](**options)


@pytest.mark.parametrize("command", ["synthesize", "quantize", "evaluate"])
def test_every_key_can_be_set_by_its_line(genie: Any, command: str) -> None:
    path = printed(genie, command)
    text = re.sub(r"^  # (\w+:)", r"  \1", path.read_text(), flags=re.MULTILINE)
    path.write_text(text)
    assert read_params(path).section(command) == SECTIONS[command]().model_dump(mode="json")
    for line in text.splitlines()[3:]:
        assert re.fullmatch(r"  \w+: \S+  # \S.*\.", line), line


@EACH_PRESET
def test_values_of_a_preset_are_all_pinned(genie: Any, command: str, preset: str) -> None:
    path = printed(genie, command, "--preset", preset)
    needed = NEEDED.get(preset, {})
    assert set(read_params(path).section(command)) == set(SECTIONS[command].model_fields)
    wanted = SECTIONS[command](**PRESETS[command].preset_options(preset), **needed, preset=preset)
    assert configured(path, command, **needed) == wanted
    assert ("# It needs " in path.read_text()) == (preset in NEEDED)


def test_file_on_the_command_line(genie: Any, images: Path) -> None:
    """Both files give the run that the preset gives, to the byte."""
    tensors = ("weights.safetensors", "step_sizes.safetensors")
    arguments = ["quantize", "--model", "digits_resnet", "--images", images]
    genie(*arguments, "--preset", "mse", "--out", "wanted")
    genie(*arguments, "--preset", "mse", "--params", printed(genie, "quantize"), "--out", "over")
    genie(*arguments, "--params", printed(genie, "quantize", "--preset", "mse"), "--out", "pinned")
    for name in tensors:
        wanted = Path("wanted", name).read_bytes()
        assert Path("over", name).read_bytes() == wanted
        assert Path("pinned", name).read_bytes() == wanted


def test_presets_have_a_line_each(genie: Any) -> None:
    lines = genie("presets").stdout.splitlines()
    names = [*synthesis.PRESETS, *quantization.PRESETS]
    assert [line.split()[0] for line in lines if not line.startswith(("genie synth", "genie quant", "name "))] == names
    line = next(line for line in lines if line.startswith("gdfq"))
    assert "ECCV 2020" in line and "cross-entropy" in line


def test_presets_as_json(genie: Any) -> None:
    listed = json.loads(genie("presets", "--json").stdout)
    assert {command: [row["name"] for row in rows] for command, rows in listed.items()} == {
        command: list(module.PRESETS) for command, module in PRESETS.items()
    }
    assert next(row for row in listed["quantize"] if row["name"] == "qdrop") == {
        "name": "qdrop",
        "summary": quantization.find_preset("qdrop").summary,
        "source": "Wei et al., QDrop, ICLR 2022",
        "options": {"rounding": "adaround"},
    }
