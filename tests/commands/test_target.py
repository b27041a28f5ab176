"""`genie quantize` within a budget: sizes, bit operations, the table beside the folder, the repair round."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import genie_cli
from genie_cli.artifacts.quantized import QuantizedArtifact, load_quantized
from genie_cli.config.bit_table import read_bit_table
from genie_cli.data.digits import split
from genie_cli.quantization.bits import repair
from genie_cli.quantization.bits.search import table_of

DIGITS = ("--model", "digits_resnet", "--protocol", "ait")
SMALLEST, LARGEST = 35_000, 65_000
"""Bytes below and above those of the digits network at 2 and at 8 bits."""


def folder_bytes(folder: str | Path) -> int:
    return sum(file.stat().st_size for file in Path(folder).iterdir())


def tensors(artifact: QuantizedArtifact) -> dict[str, bytes]:
    codes = {
        name: weight.codes.numpy().tobytes() + weight.scale.numpy().tobytes()
        for name, weight in artifact.weights.items()
    }
    return codes | {name: repr(step).encode() for name, step in artifact.activations.items()}


def bits_of(artifact: QuantizedArtifact) -> tuple[dict[str, int], dict[str, int]]:
    return (
        {name: weight.bits for name, weight in artifact.weights.items()},
        {name: step.bits for name, step in artifact.activations.items()},
    )


@functools.cache
def pixels() -> torch.Tensor:
    return split(train=True)[0][:8]


@settings(max_examples=8, deadline=None)
@given(
    budget=st.integers(37_500, LARGEST),
    protocol=st.sampled_from(["ait", "genie", "integer"]),
    learned=st.booleans(),
)
def test_size_on_disk_is_at_most_the_budget(
    tmp_path_factory: pytest.TempPathFactory, budget: int, protocol: str, learned: bool
) -> None:
    recipe: dict[str, Any] = {"num_steps": 2, "batch_size": 4} if learned else {"preset": "mse"}
    model = genie_cli.quantize("digits_resnet", pixels(), target_size=budget + 7_000, protocol=protocol, **recipe)
    folder = tmp_path_factory.mktemp("target") / "quantized"
    model.save(folder)
    assert folder_bytes(folder) <= budget + 7_000


def test_the_table_beside_the_folder_gives_the_same_network(genie: Any, images: Path) -> None:
    command = ("quantize", *DIGITS, "--images", images, "--num-steps", 3, "--no-repair")
    shown = genie(*command, "--target-size", "44kB", "--out", "found").stdout
    assert 42_000 < folder_bytes("found") <= 44_000
    assert "found.bits.yaml" in shown and "bit operations per image" in shown
    found = load_quantized(Path("found"))
    weights, activations = bits_of(found)
    assert len(set(weights.values())) > 1 and set(activations.values()) == {4}
    table = read_bit_table(Path("found.bits.yaml"))
    assert (table.weights, table.activations) == (weights, activations)
    assert found.metadata.config["target_size"] == 44_000
    genie(*command, "--bits-override", "found.bits.yaml", "--out", "again")
    assert tensors(load_quantized(Path("again"))) == tensors(found)


def test_a_ratio_is_of_the_network_in_float32_and_widths_are_those_allowed(genie: Any, images: Path) -> None:
    command = ("quantize", *DIGITS, "--images", images, "--preset", "minmax", "--bits", "2,8,4")
    genie(*command, "--target-ratio", 0.28, "--out", "ratio")
    floats = sum(parameter.numel() for parameter in genie_cli.load("digits_resnet", "ratio").parameters())
    weights, _ = bits_of(load_quantized(Path("ratio")))
    assert set(weights.values()) <= {2, 4, 8} and len(set(weights.values())) > 1
    numel = sum(weight.codes.numel() for weight in load_quantized(Path("ratio")).weights.values())
    others = sum(value.numel() for value in load_quantized(Path("ratio")).parameters.values())
    assert floats >= 0 and folder_bytes("ratio") <= 0.28 * 4 * (numel + others)


def test_bit_operations_are_of_weights_and_activations(genie: Any, images: Path) -> None:
    command = ("quantize", *DIGITS, "--images", images, "--preset", "minmax")
    shown = genie(*command, "--target-bitops", "20M", "--bits", "2,3,4,5,6", "--out", "q").stdout
    weights, activations = bits_of(load_quantized(Path("q")))
    assert len(set(weights.values())) > 1 and len(set(activations.values())) > 1
    count = float(shown.split(" bit operations per image")[0].rpartition(" ")[2])
    assert 15e6 < count <= 20e6


def test_what_the_protocol_exempts_and_patterns_say_stays(genie: Any, images: Path) -> None:
    options = ("--model", "digits_resnet", "--protocol", "genie", "--bits-override", "layer1.0.conv1=7,6")
    genie("quantize", *options, "--images", images, "--preset", "minmax", "--bits", "2,3", "--target-size", "42kB")
    weights, activations = bits_of(load_quantized(Path("quantized")))
    assert {weights.pop(name) for name in ("conv1", "fc")} == {8} and weights.pop("layer1.0.conv1") == 7
    assert set(weights.values()) == {2, 3}
    assert activations["layer1.0.conv1.input"] == 6 and activations["fc.input"] == 8


def test_sensitivities_of_a_file(genie: Any, images: Path, other_teacher: list[str]) -> None:
    genie("sensitivity", *DIGITS, "--images", images)
    command = ("quantize", *DIGITS, "--images", images, "--preset", "minmax", "--target-size", "44kB")
    genie(*command, "--out", "own")
    genie(*command, "--sensitivity", "sensitivity.json", "--out", "file")
    assert bits_of(load_quantized(Path("own"))) == bits_of(load_quantized(Path("file")))
    costs = json.loads(Path("sensitivity.json").read_text())
    costs["weights"]["fc"] = dict.fromkeys(costs["weights"]["fc"], 0.0)
    Path("free.json").write_text(json.dumps(costs))
    genie(*command, "--sensitivity", "free.json", "--out", "free")
    assert bits_of(load_quantized(Path("free")))[0]["fc"] == 2
    genie("sensitivity", *other_teacher, "--images", images, "--out", "other.json")
    assert "holds the sensitivities of" in genie(*command, "--sensitivity", "other.json", code=3).stderr
    del costs["weights"]["fc"]
    Path("lacking.json").write_text(json.dumps(costs))
    assert "lack layer 'fc'" in genie(*command, "--sensitivity", "lacking.json", code=3).stderr


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--target-size", "10kB"), 2, "--target-size: 10000 bytes (10.0 kB) is below the smallest network"),
        (("--target-bitops", "1M"), 2, "--target-bitops: 1e+06 bit operations is below the smallest network"),
        (("--target-ratio", "0.01"), 2, "--target-ratio: "),
        (("--target-ratio", "1.5"), 2, "target_ratio = 1.5 cannot be used"),
        (("--target-bitops", "many"), 2, "is not a count"),
        (("--target-size", "44kB", "--target-ratio", "0.2"), 2, "give one"),
        (("--target-size", "44kB", "--bits", "1,4"), 2, "widths = "),
        (("--bits", "2,4"), 2, "widths belongs to a search for bits"),
        (("--sensitivity", "s.json"), 2, "sensitivity belongs to a search for bits"),
        (("--target-size", "44kB", "--bits-override", "bits.yaml"), 2, "leaves nothing to search"),
        (("--target-size", "44kB", "--preset", "dfq"), 2, "needs images"),
        (("--target-size", "44kB", "--bits-override", "*=4,4"), 2, "No layer is free to choose bits for"),
        (("--target-size", "44kB", "--sensitivity", "absent.json"), 3, "absent.json cannot be read"),
    ],
)  # fmt: skip
def test_bad_input_before_the_work(genie: Any, images: Path, options: tuple[str, ...], code: int, told: str) -> None:
    Path("bits.yaml").write_text("weights: {fc: 3}\n")
    result = genie("quantize", *DIGITS, "--images", images, *options, code=code)
    assert told in result.stderr
    assert not Path("quantized").exists() and not Path("quantized.bits.yaml").exists()


def test_a_budget_above_the_largest_is_said(genie: Any, images: Path) -> None:
    result = genie("quantize", *DIGITS, "--images", images, "--preset", "minmax", "--target-size", "1MB")
    assert "above the largest network" in result.stderr and "with 8 bits everywhere" in result.stderr
    assert set(bits_of(load_quantized(Path("quantized")))[0].values()) == {8}


# --- the repair round


def test_the_second_round_is_a_network_of_its_bits(genie: Any, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units before the first change are taken from the first round: the bytes are those of learning all anew."""
    monkeypatch.setattr(repair, "FAR_OFF", 1.001)
    monkeypatch.setattr(
        "genie_cli.stages.bits._distance", lambda network, *_: -len(made) if not made.append(network) else 0
    )
    made: list[Any] = []
    command = ("quantize", *DIGITS, "--images", images, "--num-steps", 3)
    result = genie(*command, "--target-size", "44kB", "--out", "found")
    assert "learning again with other bits from unit" in result.stderr
    first, second = made
    assert table_of(first.plan.bits) != table_of(second.plan.bits)
    found = load_quantized(Path("found"))
    assert read_bit_table(Path("found.bits.yaml")) == table_of(second.plan.bits)
    assert folder_bytes("found") <= 44_000
    moved = [abs(first.plan.bits.weights[name] - bits) for name, bits in second.plan.bits.weights.items()]
    assert max(moved) == 1
    genie(*command, "--bits-override", "found.bits.yaml", "--out", "again")
    assert tensors(load_quantized(Path("again"))) == tensors(found)
    assert not Path(".genie-work").exists()


def test_the_nearer_network_is_kept_and_the_round_can_be_switched_off(
    genie: Any, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "FAR_OFF", 1.001)
    command = ("quantize", *DIGITS, "--images", images, "--num-steps", 3, "--target-size", "44kB")
    off = genie(*command, "--no-repair", "--out", "off")
    assert "repair" not in off.stderr
    monkeypatch.setattr(
        "genie_cli.stages.bits._distance", lambda network, *_: len(made) if not made.append(network) else 0
    )
    made: list[Any] = []
    kept = genie(*command, "--out", "kept")
    assert "the first network is kept" in kept.stderr and len(made) == 2
    assert tensors(load_quantized(Path("kept"))) == tensors(load_quantized(Path("off")))
