"""Who gets which bits, on the command line: protocol `hardware` and `--bits-override`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.data.digits import split
from genie_cli.data.normalize import normalize_pixels
from genie_cli.models.digits import INPUT_SPEC
from genie_cli.student.load import load

DIGITS = ("--model", "digits_resnet")
OUTPUTS = {"avgpool.adaptive_avg_pool2d0.input", "fc.output"}
"""Sites of protocol `hardware` that are no layer's input."""


def described(genie: Any, *options: str) -> dict[str, Any]:
    fields = json.loads(genie("inspect", "digits_resnet", "--json", *options).stdout)
    assert isinstance(fields, dict)
    return fields


def lines_of(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


# --- inspect


def test_inspect_shows_sites_that_no_layer_reads(genie: Any) -> None:
    sites = described(genie, "--protocol", "hardware", "--activation-bits", "5")["sites"]
    assert {site["name"]: site["bits"] for site in sites if not site["layers"]} == dict.fromkeys(OUTPUTS, 5)
    assert sites[-1] == {"name": "fc.output", "bits": 5, "layers": []}
    readers = {site["name"]: site["layers"] for site in sites}
    assert readers["layer2.0.conv1.input"] == ["layer2.0.conv1", "layer2.0.downsample.0"]
    lines = lines_of(genie("inspect", "digits_resnet", "--protocol", "hardware", "--activation-bits", 5).stdout)
    first = lines.index("Activations that no layer reads as they are")
    assert lines[first + 1 : first + 4] == ["site A bits", "avgpool.adaptive_avg_pool2d0.input 5", "fc.output 5"]
    assert "activation sites 9" in lines
    assert any(line.startswith("protocol hardware: every layer at the target bits, and") for line in lines)


@pytest.mark.parametrize("protocol", ["genie", "qdrop", "ait"])
def test_other_protocols_have_none_of_these(genie: Any, protocol: str) -> None:
    assert all(site["layers"] for site in described(genie, "--protocol", protocol)["sites"])
    assert "Activations that no layer reads" not in genie("inspect", "digits_resnet", "--protocol", protocol).stdout


def test_inspect_with_overrides(genie: Any) -> None:
    options = ("--bits-override", "layer1.*=8,7", "--bits-override", "*.conv2=3,2", "--bits-override", "fc=5,6")
    layers = described(genie, *options)["layers"]
    bits = {layer["name"]: (layer["weight_bits"], layer["activation_bits"]) for layer in layers}
    assert bits == {
        "conv1": (8, None), "layer1.0.conv1": (8, 7), "layer1.0.conv2": (3, 2),
        "layer2.0.conv1": (4, 4), "layer2.0.conv2": (3, 2), "layer2.0.downsample.0": (4, 4),
        "layer3.0.conv1": (4, 4), "layer3.0.conv2": (3, 2), "layer3.0.downsample.0": (4, 4), "fc": (5, 6),
    }  # fmt: skip
    shown = lines_of(genie("inspect", "digits_resnet", *options).stdout)
    assert "fc linear 10x64 5 fc.input 6" in shown
    assert "layer1.0.conv1 conv2d 16x16x3x3 8 layer1.0.conv1.input 7 layer1.0.bn1" in shown


# --- quantize


def test_quantize_hardware_with_overrides_to_evaluation(genie: Any, images: Path) -> None:
    options = ("--protocol", "hardware", "--bits-override", "layer1.*=8,8", "--bits-override", "fc=6,8")
    result = genie("quantize", *DIGITS, "--images", images, "--num-steps", 4, *options)
    assert "protocol hardware, layer1.*=8,8, fc=6,8," in " ".join(result.stdout.split())
    artifact = load_quantized(Path("quantized"))
    planned = described(genie, *options)
    assert {name: w.bits for name, w in artifact.weights.items()} == {
        layer["name"]: layer["weight_bits"] for layer in planned["layers"]
    }
    assert {name: a.bits for name, a in artifact.activations.items()} == {
        site["name"]: site["bits"] for site in planned["sites"]
    }
    assert set(artifact.activations) >= OUTPUTS
    assert artifact.metadata.config["bits_override"] == {"layer1.*": [8, 8], "fc": [6, 8]}
    network = load("digits_resnet", "quantized")
    logits = network(normalize_pixels(split(train=False)[0][:64], INPUT_SPEC))
    assert len(logits.unique()) <= 2**4
    assert torch.equal(
        load("digits_resnet", "quantized")(torch.zeros(1, 1, 16, 16)), network(torch.zeros(1, 1, 16, 16))
    )
    evaluated = json.loads(
        genie("evaluate", *DIGITS, "--quantized", "quantized", "--data", "digits", "--num-images", 64, "--json").stdout
    )
    assert evaluated["protocol"] == "hardware"
    assert evaluated["top1"] > 50
    shown = lines_of(genie("inspect", "quantized").stdout)
    assert "fc.output 4 signed" in shown
    assert "fc.input 8 unsigned" in shown


def test_overrides_of_the_params_file_and_flags_that_replace_them(genie: Any, images: Path) -> None:
    Path("p.yaml").write_text(
        "quantize:\n  preset: minmax\n  schemes:\n    edges: {bits_override: {conv1: [8, 8], '*.conv2': [2, 3]}}\n"
    )
    command = ("quantize", *DIGITS, "--images", images, "--params", "p.yaml", "--scheme", "edges", "--protocol", "ait")
    genie(*command, "--out", "file")
    genie(*command, "--bits-override", "fc=3,5", "--out", "flag")
    genie(*command, "--set", "bits_override={fc: [3, 5]}", "--out", "set")
    found = {}
    for name in ("file", "flag", "set"):
        artifact = load_quantized(Path(name))
        found[name] = {key: weight.bits for key, weight in artifact.weights.items() if weight.bits != 4}
        steps = {key: step.bits for key, step in artifact.activations.items() if step.bits != 4}
        found[name] |= steps
    convolutions = [f"layer{n}.0.conv2" for n in (1, 2, 3)]
    assert found["file"] == {
        "conv1": 8, **dict.fromkeys(convolutions, 2), **{f"{name}.input": 3 for name in convolutions},
    }  # fmt: skip
    assert found["flag"] == found["set"] == {"fc": 3, "fc.input": 5}


def test_a_table_from_a_file_a_params_file_and_inside_of_one(genie: Any, images: Path) -> None:
    Path("bits.yaml").write_text("weights: {layer1.0.conv1: 3}\nactivations: {fc.input: 5, '*.conv2.input': 2}\n")
    Path("named.yaml").write_text("quantize: {bits_override: bits.yaml}\n")
    Path("inside.yaml").write_text(
        "quantize:\n  bits_override:\n    weights: {layer1.0.conv1: 3}\n"
        "    activations: {fc.input: 5, '*.conv2.input': 2}\n"
    )
    command = ("quantize", *DIGITS, "--images", images, "--preset", "minmax", "--protocol", "ait")
    ways = {"flag": ("--bits-override", "bits.yaml"), "named": ("--params", "named.yaml"),
            "inside": ("--params", "inside.yaml")}  # fmt: skip
    written = set()
    for name, options in ways.items():
        assert "bits of a table" in genie(*command, *options, "--out", name).stdout
        written.add(b"".join(file.read_bytes() for file in sorted(Path(name).iterdir())))
    assert len(written) == 1
    artifact = load_quantized(Path("flag"))
    assert {name: weight.bits for name, weight in artifact.weights.items() if weight.bits != 4} == {"layer1.0.conv1": 3}
    assert {name: step.bits for name, step in artifact.activations.items() if step.bits != 4} == {
        "fc.input": 5, **{f"layer{n}.0.conv2.input": 2 for n in (1, 2, 3)}
    }  # fmt: skip
    sites = {site["name"]: site["bits"] for site in described(genie, "--protocol", "ait", *ways["flag"])["sites"]}
    assert sites == {name: step.bits for name, step in artifact.activations.items()}


def test_a_table_of_absent_names_is_refused_before_the_work(genie: Any, images: Path) -> None:
    Path("bits.yaml").write_text("activations: {fc.output: 5}\n")
    result = genie("quantize", *DIGITS, "--images", images, "--bits-override", "bits.yaml", code=2)
    assert "names the activation site 'fc.output'" in result.stderr
    Path("bits.yaml").write_text("weights: {fc: 9}\n")
    assert "at 'weights.fc' = 9" in genie("inspect", "digits_resnet", "--bits-override", "bits.yaml", code=3).stderr


def test_help_tells_the_form(genie: Any) -> None:
    for command in ("quantize", "inspect"):
        shown = " ".join(genie(command, "--help").stdout.split())
        assert "--bits-override" in shown
        assert "PATTERN=W,A" in shown
