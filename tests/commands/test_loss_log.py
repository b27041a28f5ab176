"""The course of a quantization's losses: ``--log``, ``details.json`` and ``--tensorboard``."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from genie_cli.artifacts.details import MOST_POINTS, NUM_BINS, histograms_of, thinned
from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import Teacher

DIGITS = ("--model", "digits_resnet")
LAYERS = ["conv1", "layer1", "layer2", "layer3", "fc"]


def read(path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def test_each_unit_has_its_steps(genie: Any, images: Path) -> None:
    genie("quantize", *DIGITS, "--images", images, "--num-steps", 60, "--log", "units.csv")
    rows = read("units.csv")
    assert list(rows[0]) == ["unit", "step", "loss", "held_out_loss"]
    assert [row["unit"] for row in rows[::2]] == LAYERS
    assert [int(row["step"]) for row in rows] == [50, 60] * 5
    assert all(float(row["loss"]) > 0 and row["held_out_loss"] == "" for row in rows)
    losses = json.loads(Path("quantized/details.json").read_text())["losses"]
    for row in rows:
        (found,) = [loss for step, loss, _ in losses[row["unit"]] if step == int(row["step"])]
        assert found == pytest.approx(float(row["loss"]), rel=1e-5)


def test_held_out_losses_where_they_are_measured(genie: Any, images: Path) -> None:
    options = ("--num-steps", 40, "--holdout", 0.25, "--patience", 10, "--log", "units.csv")
    genie("quantize", *DIGITS, "--images", images, *options)
    rows = [row for row in read("units.csv") if row["unit"] == "layer2"]
    measured = [int(row["step"]) for row in rows if row["held_out_loss"]]
    taken = next(u for u in json.loads(Path("quantized/metrics.json").read_text())["units"] if u["name"] == "layer2")
    assert measured == list(range(10, taken["num_steps"] + 1, 5))  # every half patience, after the warm-up of 8


def test_layers_of_a_unit_count_on(genie: Any, images: Path) -> None:
    genie("quantize", *DIGITS, "--images", images, "--unit", "layer", "--num-steps", 4, "--log", "units.csv")
    assert [int(row["step"]) for row in read("units.csv") if row["unit"] == "layer2"] == [4, 8, 12]


def test_nothing_learned_is_a_heading(genie: Any, images: Path) -> None:
    genie("quantize", *DIGITS, "--images", images, "--preset", "minmax", "--log", "units.csv")
    assert Path("units.csv").read_text() == "unit,step,loss,held_out_loss\n"


def test_details_hold_weights_before_and_after(quantized: Path, digits_teacher: Teacher) -> None:
    text = (quantized / "details.json").read_text()
    details = json.loads(text)
    artifact = load_quantized(quantized)
    folded = fold_batch_norms(digits_teacher.graph).graph
    for layer in weight_layers(folded):
        own, weight = details["weights"][layer.name], artifact.weights[layer.name]
        before = get_tensor(folded, layer.weight_key).double().flatten()
        after = ((weight.codes.double().flatten(1) - weight.zero_point) * weight.scale.double()).flatten()
        low, high = min(before.min(), after.min()).item(), max(before.max(), after.max()).item()
        assert (own["low"], own["high"]) == (pytest.approx(low, rel=1e-5), pytest.approx(high, rel=1e-5))
        for key, values in (("before", before), ("after", after)):
            assert sum(own[key]) == len(values)
            counted = torch.histc(values, NUM_BINS, low, high)
            assert (torch.tensor(own[key]) - counted).abs().sum() <= 0.02 * len(values) + 4  # values on an edge
    assert list(details["activations"]) == sorted(LAYERS)
    assert "/" not in text  # no path


def test_details_are_not_needed(genie: Any, quantized: Path) -> None:
    folder = Path("old")
    folder.mkdir()
    for file in quantized.iterdir():
        if file.name != "details.json":
            (folder / file.name).write_bytes(file.read_bytes())
    genie("verify", folder)
    (folder / "details.json").write_text('{"weights": 3}')
    assert "old/details.json has metadata that cannot be used, at 'weights'" in genie("verify", folder, code=3).stderr


def test_histograms_of_equal_values() -> None:
    found = histograms_of(torch.zeros(7), torch.zeros(7))
    assert sum(found.before) == sum(found.after) == 7
    assert found.low < 0 < found.high


@pytest.mark.parametrize("count", [1, MOST_POINTS, MOST_POINTS + 1, 5 * MOST_POINTS + 3])
def test_a_curve_is_bounded_and_keeps_its_end(count: int) -> None:
    rows = [(step, 1.0 / step, None) for step in range(1, count + 1)]
    kept = thinned(rows)
    assert len(kept) <= MOST_POINTS
    assert kept[-1] == rows[-1]
    assert [step for step, *_ in kept] == sorted({step for step, *_ in kept})
    assert thinned([(1, float("nan"), None)]) == ((1, None, None),)


def test_tensorboard(genie: Any) -> None:
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    genie("synthesize", *DIGITS, "--n", 4, "--num-steps", 12, "--tensorboard", "runs/images", "--log", "log.csv")
    genie("quantize", *DIGITS, "--num-steps", 60, "--tensorboard", "runs/network", "--log", "units.csv")
    for folder, file, prefix, at in (
        ("images", "log.csv", "synthesize loss/batch 1 of 1", [1, 10, 12]),
        ("network", "units.csv", "quantize loss/unit 2 of 5 layer1", [110, 120]),
    ):
        events = loading.EventAccumulator(f"runs/{folder}")
        events.Reload()
        scalars = events.Scalars(next(tag for tag in events.Tags()["scalars"] if tag == prefix))
        assert [scalar.step for scalar in scalars] == at
        wanted = [float(row["loss"]) for row in read(file) if row.get("unit", "layer1") == "layer1"]
        assert [scalar.value for scalar in scalars] == pytest.approx(wanted, rel=1e-5)


def test_tensorboard_that_is_not_there(genie: Any, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("")
    command = ("quantize", *DIGITS, "--images", images, "--num-steps", 1, "--tensorboard")
    assert "Folder --tensorboard file cannot be made" in genie(*command, "file", code=3).stderr
    monkeypatch.setattr("genie_cli.runtime.extras.find_spec", lambda name: None)
    assert "pip install 'genie-cli[tensorboard]'" in genie(*command, "runs", code=2).stderr
    assert not Path("quantized").exists()


def test_fine_tuning_is_a_curve_too(genie: Any, images: Path) -> None:
    recipe = ("--preset", "genie-tuned", "--num-steps", 4)
    told = genie("quantize", *DIGITS, "--images", images, *recipe, "--log", "units.csv").stdout
    report = json.loads(Path("quantized/metrics.json").read_text())["finetuning"]
    assert report["num_steps"] == 4 and report["kept"] == (report["loss_after"] <= report["loss_before"])
    assert "4 for the whole network" in told and ("(left out)" in told) == (not report["kept"])
    names = list(dict.fromkeys(row["unit"] for row in read("units.csv")))
    assert names == [*LAYERS, "fine-tuning"]
    details = json.loads(Path("quantized/details.json").read_text())
    assert set(details["losses"]) == {*LAYERS, "fine-tuning"}
    assert set(details["activations"]) == set(LAYERS)
