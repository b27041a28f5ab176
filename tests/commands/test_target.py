"""`genie quantize` within a budget: the table beside the folder, bad input, the repair round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genie_cli.artifacts.quantized import QuantizedArtifact
from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.config.bit_table import read_bit_table
from genie_cli.quantization.bits import repair
from genie_cli.quantization.bits.search import table_of

DIGITS = ("--model", "digits_resnet", "--protocol", "ait")


def folder_bytes(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).iterdir())


def tensors(folder: str) -> dict[str, bytes]:
    artifact = load_quantized(Path(folder))
    codes = {
        name: each.codes.numpy().tobytes() + each.scale.numpy().tobytes() for name, each in artifact.weights.items()
    }
    return codes | {name: repr(step).encode() for name, step in artifact.activations.items()}


def bits_of(artifact: QuantizedArtifact) -> tuple[dict[str, int], dict[str, int]]:
    return (
        {name: weight.bits for name, weight in artifact.weights.items()},
        {name: step.bits for name, step in artifact.activations.items()},
    )


def test_the_table_beside_the_folder_gives_the_same_network(genie: Any, images: Path) -> None:
    command = ("quantize", *DIGITS, "--images", images, "--num-steps", 3)
    shown = genie(*command, "--target-size", "44kB", "--no-repair", "--out", "found")
    assert 42_000 < folder_bytes("found") <= 44_000
    assert "found.bits.yaml" in shown.stdout and "bit operations per image" in shown.stdout
    assert "repair" not in shown.stderr
    found = load_quantized(Path("found"))
    weights, activations = bits_of(found)
    assert len(set(weights.values())) > 1 and set(activations.values()) == {4}
    table = read_bit_table(Path("found.bits.yaml"))
    assert (table.weights, table.activations) == (weights, activations)
    assert found.metadata.config["target_size"] == 44_000
    genie(*command, "--bits-override", "found.bits.yaml", "--out", "again")
    assert tensors("again") == tensors("found")
    evaluated = genie("evaluate", *DIGITS[:2], "--quantized", "found", "--data", "digits", "--num-images", 16, "--json")
    assert json.loads(evaluated.stdout)["num_bytes"] == folder_bytes("found")


def test_bit_operations_are_of_weights_and_activations(genie: Any, images: Path) -> None:
    command = ("quantize", *DIGITS, "--images", images, "--preset", "minmax")
    shown = genie(*command, "--target-bitops", "20M", "--bits", "2,4,8", "--out", "q").stdout
    weights, activations = bits_of(load_quantized(Path("q")))
    assert len(set(weights.values())) > 1 and {*weights.values(), *activations.values()} <= {2, 4, 8}
    count = float(shown.split(" bit operations per image")[0].rpartition(" ")[2])
    assert 15e6 < count <= 20e6


def test_a_search_goes_by_the_sensitivities_of_a_file(genie: Any, images: Path) -> None:
    genie("sensitivity", *DIGITS, "--images", images)
    costs = json.loads(Path("sensitivity.json").read_text())
    costs["weights"]["fc"] = dict.fromkeys(costs["weights"]["fc"], 0.0)
    Path("free.json").write_text(json.dumps(costs))
    command = ("quantize", *DIGITS, "--images", images, "--preset", "minmax", "--target-size", "44kB")
    genie(*command, "--sensitivity", "free.json")
    assert bits_of(load_quantized(Path("quantized")))[0]["fc"] == 2
    Path("other.json").write_text(json.dumps({**costs, "teacher": "other", "teacher_sha256": "f" * 64}))
    told = "other.json holds the sensitivities of 'other' with weights ffffffffffff"
    assert told in genie(*command, "--sensitivity", "other.json", code=3).stderr


BAD = [
    (("--target-size", "10kB"), 2, "--target-size: 10000 bytes (10.0 kB) is below the smallest network that"),
    (("--target-bitops", "1M"), 2, "--target-bitops: 1e+06 bit operations is below the smallest network"),
    (("--target-ratio", "1.5"), 2, "--target-ratio 1.5 cannot be used"),
    (("--target-bitops", "many"), 2, "is not a count"),
    (("--target-size", "44kB", "--target-ratio", "0.2"), 2, "--target-size and --target-ratio both say"),
    (("--target-size", "44kB", "--bits", "1,4"), 2, "--bits '1' cannot be used: it should be at least 2"),
    (("--bits", "2,4"), 2, "--bits 2,4 belongs to a search for bits: give --target-size, --target-ratio or"),
    (("--set", "sensitivity=s.json"), 2, "sensitivity = s.json belongs to a search for bits"),
    (("--target-size", "44kB", "--bits-override", "bits.yaml"), 2, "leaves nothing to search"),
    (("--target-size", "44kB", "--preset", "dfq"), 2, "needs images"),
    (("--target-size", "44kB", "--bits-override", "*=4,4"), 2, "No layer is free to choose bits for"),
    (("--target-size", "44kB", "--sensitivity", "absent.json"), 3, "absent.json cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "code", "told"), BAD, ids=[" ".join(options) for options, _, _ in BAD])
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


@pytest.mark.slow
@pytest.mark.parametrize("better", [0, 1], ids=["the first", "the second"])
def test_the_nearer_of_two_networks_is_written(
    genie: Any, images: Path, monkeypatch: pytest.MonkeyPatch, better: int
) -> None:
    """Units before the first change are taken from the first round: the bytes are those of learning all anew."""
    made: list[Any] = []

    def distance(network: Any, *_: Any) -> float:
        made.append(network)
        return float(len(made) != better + 1)

    monkeypatch.setattr(repair, "FAR_OFF", 1.001)
    monkeypatch.setattr("genie_cli.stages.bits._distance", distance)
    command = ("quantize", *DIGITS, "--images", images, "--num-steps", 3)
    result = genie(*command, "--target-size", "44kB", "--out", "found")
    assert "learning again with other bits from unit" in result.stderr
    assert f"the {('first', 'second')[better]} network is kept" in result.stderr
    tables = [table_of(network.plan.bits) for network in made]
    assert tables[0] != tables[1]
    assert read_bit_table(Path("found.bits.yaml")) == tables[better]
    assert folder_bytes("found") <= 44_000
    genie(*command, "--bits-override", "found.bits.yaml", "--out", "again")
    assert tensors("again") == tensors("found")
    assert not Path(".genie-work").exists()


@pytest.mark.slow
def test_a_network_is_fine_tuned_once_behind_both_rounds(
    genie: Any, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "FAR_OFF", 1.001)
    command = ("quantize", *DIGITS, "--images", images, "--num-steps", 4, "--set", "finetune_share=0.5")
    for size in range(44_000, 48_000, 400):  # one of them leaves the second round something to change
        result = genie(*command, "--target-size", size, "--out", "found")
        if "learning again with other bits from unit" in result.stderr:
            break
    else:
        raise AssertionError("no second round changes bits")
    genie(*command, "--bits-override", "found.bits.yaml", "--out", "again")
    assert tensors("again") == tensors("found")
