"""The three commands end to end on the digits network, with small budgets."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from genie_cli.artifacts.images import load_images
from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.data.digits import split
from genie_cli.data.normalize import normalize_pixels
from genie_cli.models.digits import INPUT_SPEC
from genie_cli.student.load import load

DIGITS = ("--model", "digits_resnet")
SMALL = (*DIGITS, "--n", 8, "--num-steps", 2)
FEW_STEPS = (*DIGITS, "--num-steps", 2)
EVALUATION_KEYS = {"top1", "top5", "teacher_top1", "drop", "agreement", "num_images"}


def hashes(*paths: Path) -> dict[str, str]:
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def one_object(text: str) -> dict[str, Any]:
    """The JSON object that is all of `text`."""
    loaded = json.loads(text)
    assert isinstance(loaded, dict)
    assert text.startswith("{") and text.endswith("}\n")
    return loaded


def rows(table: str) -> list[str]:
    """The rows of a closing table, a space between label and value."""
    return [re.sub("  +", " ", line) for line in table.splitlines()]


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def config_of(folder: Path) -> dict[str, Any]:
    return load_quantized(folder).metadata.config


# --- from end to end, in processes of their own


def test_chain(genie: Any, genie_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Synthesize and quantize in processes of their own and here, for the same bytes; then evaluate and report."""
    folders = Path("first").absolute(), Path("second").absolute()
    for folder in folders:
        folder.mkdir()
    made = genie_process("synthesize", *SMALL, "--log", "log.csv", cwd=folders[0], PYTHONHASHSEED="1")
    learned = genie_process("quantize", *FEW_STEPS, cwd=folders[0], PYTHONHASHSEED="1")
    monkeypatch.chdir(folders[1])
    genie("synthesize", *SMALL, "--log", "log.csv", "--performance", "synthesis.json")
    genie("quantize", *FEW_STEPS, "--performance", "quantization.json")
    first, second = (hashes(f / "images.safetensors", f / "log.csv", f / "quantized") for f in folders)
    assert first == second
    assert sorted(first) == [
        "details.json", "images.safetensors", "log.csv", "metrics.json", "step_sizes.safetensors",
        "weights.safetensors",
    ]  # fmt: skip
    for name in ("synthesis.json", "quantization.json"):  # what is measured is in files of its own
        measured = json.loads(Path(name).read_text())
        assert measured["seconds"] > 0 and measured["steps"] > 0 and measured["processes"] == 1
        assert measured["peak_memory"]["host"] > 50_000_000
    assert made.stdout.startswith("Synthesized\n")
    assert learned.stdout.startswith("Quantized w4a4\n")
    for result, stage in ((made, "synthesize"), (learned, "quantize")):
        assert [
            line
            for line in result.stderr.splitlines()
            if not line.startswith(("loading ", "capturing ", "Note: ", f"{stage}: "))
        ] == []
        assert f"{stage}: done in" in result.stderr

    folder = folders[1]
    options = ("--data", "digits", "--quantized", "quantized", "--json", "--out", "w4a4.json")
    evaluated = genie("evaluate", *DIGITS, *options)
    figures = one_object(evaluated.stdout)
    assert figures == json.loads((folder / "w4a4.json").read_text())
    assert figures.keys() > EVALUATION_KEYS
    assert figures["num_images"] == 537
    assert figures["drop"] == pytest.approx(figures["teacher_top1"] - figures["top1"], abs=1e-4)
    assert (figures["preset"], figures["weight_bits"], figures["activation_bits"]) == ("genie-m", 4, 4)
    assert figures["top1"] > 90
    assert evaluated.stderr.startswith("evaluate: 537 images\n")

    reported = genie("report", "w4a4.json")
    names = ["figures.json", "table.csv", "table.json", "table.md"]
    assert sorted(path.name for path in (folder / "report").iterdir()) == names
    assert "Model: digits_resnet" in (folder / "report" / "table.md").read_text()
    assert f"{figures['top1']:.2f}" in reported.stdout
    rows = read_csv(folder / "report" / "table.csv")
    assert [float(row["top1"]) for row in rows] == [figures["top1"]]
    assert json.loads((folder / "report" / "table.json").read_text())["w4a4"]["agreement"] == figures["agreement"]


# --- the files


def test_log_is_a_loss_curve(genie: Any) -> None:
    genie("synthesize", *DIGITS, "--n", 4, "--num-steps", 12, "--log", "log.csv")
    rows = read_csv(Path("log.csv"))
    assert list(rows[0]) == ["batch", "step", "loss", "latent_lr"]
    assert [int(row["step"]) for row in rows] == [1, 10, 12]
    assert all(float(row["loss"]) > 0 for row in rows)
    assert float(rows[0]["latent_lr"]) == 0.1


def test_another_seed_gives_other_files(genie: Any, images: Path, quantized: Path) -> None:
    genie("synthesize", *SMALL, "--seed", 1)
    assert hashes(Path("images.safetensors")) != hashes(images)
    assert not torch.equal(load_images(Path("images.safetensors")).images, load_images(images).images)
    for seed in (0, 1):
        genie("quantize", *FEW_STEPS, "--images", images, "--seed", seed, "--out", f"seed{seed}")
    assert load_quantized(Path("seed1")).metadata.seed == 1
    first, second = (load_quantized(Path(f"seed{seed}")) for seed in (0, 1))
    assert any(first.activations[site] != second.activations[site] for site in first.activations)


def test_names_of_outputs_and_device_do_not_enter_the_files(genie: Any, images: Path, quantized: Path) -> None:
    genie("synthesize", *SMALL, "--device", "cpu", "--out", "a.safetensors", "--log", "l.csv")
    assert hashes(Path("a.safetensors")).popitem()[1] == hashes(images).popitem()[1]
    options = ("--device", "cpu", "--preset", "minmax", "--images", "a.safetensors", "--out", "q")
    assert "Warning" not in genie("quantize", *DIGITS, *options).stderr  # they are its own images
    assert hashes(Path("q")) == hashes(quantized)


def test_existing_outputs_are_replaced(genie: Any, images: Path, quantized: Path) -> None:
    Path("images.safetensors").write_bytes(b"old")
    genie("synthesize", *SMALL)
    assert hashes(Path("images.safetensors")) == hashes(images)
    Path("quantized").mkdir()
    Path("quantized/metrics.json").write_text("old")
    genie("quantize", *DIGITS, "--preset", "minmax")
    assert hashes(Path("quantized")) == hashes(quantized)
    Path("m.json").write_text("old")
    genie("evaluate", *DIGITS, "--data", "digits", "--num-images", 5, "--out", "m.json")
    assert json.loads(Path("m.json").read_text())["num_images"] == 5
    genie("report", "m.json")
    genie("report", "m.json")
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["images.safetensors", "m.json", "quantized", "report"]


@pytest.mark.parametrize(
    ("arguments", "num_images", "batches"),
    [
        (("--n", 100), 100, "100"),
        (("--n", 130, "--batch-size", 128), 130, "65 + 65"),
        (("--num-images", 5, "--batch-size", 2), 5, "3 + 2"),
        (("--n", 2), 2, "2"),
    ],
)
def test_any_number_of_images(genie: Any, arguments: tuple[Any, ...], num_images: int, batches: str) -> None:
    result = genie("synthesize", *DIGITS, "--num-steps", 1, *arguments)
    loaded = load_images(Path("images.safetensors"))
    assert loaded.images.shape == (num_images, 1, 16, 16)
    assert loaded.metadata.num_images == num_images
    assert f"batches {batches}" in rows(result.stdout)
    assert len(loaded.images.flatten(1).unique(dim=0)) == num_images


def test_pixels_as_images(genie: Any) -> None:
    genie("synthesize", *SMALL, "--set", "image_dtype=uint8")
    stored = load_images(Path("images.safetensors"))
    assert (stored.images.dtype, stored.metadata.config["image_dtype"]) == (torch.uint8, "uint8")
    assert len(stored.images.unique()) > 20
    genie("quantize", *DIGITS, "--preset", "minmax")
    assert load_quantized(Path("quantized")).metadata.images_sha256 == stored.sha256


def test_an_odd_input_size(genie: Any) -> None:
    genie("synthesize", *SMALL, "--input-size", 19)
    assert load_images(Path("images.safetensors")).images.shape == (8, 1, 19, 19)
    genie("quantize", *FEW_STEPS, "--input-size", 19)
    assert load_quantized(Path("quantized")).metadata.input.size == 19


@pytest.mark.parametrize(
    ("num_images", "batch_size", "note"),
    [(5, 32, "the batch of 32 becomes 5"), (8, 8, None)],
)
def test_quantize_on_few_images(genie: Any, images: Path, num_images: int, batch_size: int, note: str | None) -> None:
    options = ("--images", images, "--num-images", num_images, "--batch-size", batch_size)
    result = genie("quantize", *FEW_STEPS, *options)
    notes = [line for line in result.stderr.splitlines() if line.startswith("Note: ")]
    assert [note in line for line in notes] == ([True] if note else [])
    assert f"images {num_images} of {images}" in rows(result.stdout)
    assert load_quantized(Path("quantized")).metadata.config["num_images"] == num_images
    assert torch.isfinite(load("digits_resnet", "quantized")(torch.randn(2, 1, 16, 16))).all()


def test_quantize_on_a_number_of_images_that_no_batch_divides(genie: Any) -> None:
    genie("synthesize", *DIGITS, "--num-steps", 1, "--n", 77)
    result = genie("quantize", *FEW_STEPS)
    assert "images 77 of images.safetensors" in rows(result.stdout)
    assert "Note" not in result.stderr


def test_size_follows_the_bits(genie: Any, images: Path, quantized: Path) -> None:
    options = ("--preset", "minmax", "--images", images, "--protocol", "ait")
    result = genie("quantize", *DIGITS, *options, "--weight-bits", 2, "--activation-bits", 8)
    artifact = load_quantized(Path("quantized"))
    assert {weight.bits for weight in artifact.weights.values()} == {2}
    assert {site.bits for site in artifact.activations.values()} == {8}
    sizes = [(folder / "weights.safetensors").stat().st_size for folder in (Path("quantized"), quantized)]
    assert sizes[0] < 0.7 * sizes[1]
    assert "Quantized w2a8\n" in result.stdout


# --- a set that was made for another teacher


def test_images_of_another_teacher(genie: Any, images: Path, other_teacher: list[str]) -> None:
    result = genie("quantize", *other_teacher, "--preset", "minmax", "--images", images)
    warnings = [line for line in result.stderr.splitlines() if line.startswith("Warning: ")]
    assert warnings == ["Warning: the images were made for another teacher, 'digits_resnet'."]
    metadata = load_quantized(Path("quantized")).metadata
    assert metadata.images_teacher_sha256 == load_images(images).metadata.teacher_sha256
    assert metadata.teacher == "networks.py:other"
    assert metadata.teacher_sha256 != metadata.images_teacher_sha256


# --- the params file

PARAMS = """
model: {name: digits_resnet}
common: {seed: 3, device: cpu}
synthesize: {num_images: 6, num_steps: 1, latent_lr: 5e-2, out: set.safetensors}
quantize:
  images: set.safetensors
  preset: minmax
  weight_bits: 3
  schemes:
    w2a8: {weight_bits: 2, activation_bits: 8, out: w2a8}
    learned: {preset: genie-m, num_steps: 1, drop_prob: 0.25, out: learned}
evaluate: {data: digits, num_images: 20, out: metrics.json}
"""


def test_params_file(genie: Any) -> None:
    Path("p.yaml").write_text(PARAMS)
    params = ("--params", "p.yaml")
    genie("synthesize", *params)
    metadata = load_images(Path("set.safetensors")).metadata
    assert (metadata.num_images, metadata.seed, metadata.config["latent_lr"]) == (6, 3, 0.05)

    genie("quantize", *params, "--scheme", "w2a8")
    config = config_of(Path("w2a8"))
    assert (config["weight_bits"], config["activation_bits"], config["preset"], config["seed"]) == (2, 8, "minmax", 3)
    genie("quantize", *params, "--scheme", "learned")
    config = config_of(Path("learned"))
    assert (config["reconstruct"], config["drop_prob"], config["weight_bits"]) == (True, 0.25, 3)

    figures = one_object(genie("evaluate", *params, "--quantized", "w2a8", "--json").stdout)
    assert (figures["num_images"], figures["weight_bits"]) == (20, 2)
    assert json.loads(Path("metrics.json").read_text()) == figures


def test_flags_win_over_the_file(genie: Any) -> None:
    Path("p.yaml").write_text(PARAMS)
    params = ("--params", "p.yaml")
    genie("synthesize", *params, "--n", 4, "--seed", 9, "--set", "latent_lr=0.2")
    metadata = load_images(Path("set.safetensors")).metadata
    assert (metadata.num_images, metadata.seed, metadata.config["latent_lr"]) == (4, 9, 0.2)
    genie("quantize", *params, "--scheme", "w2a8", "--weight-bits", 5, "--out", "here")
    config = config_of(Path("here"))
    assert (config["weight_bits"], config["activation_bits"]) == (5, 8)
    assert not Path("w2a8").exists()
    result = genie("evaluate", *params, "--num-images", 7, "--folded", "--json")
    assert one_object(result.stdout)["num_images"] == 7


# --- evaluate


def test_evaluation_is_that_of_the_loaded_network(genie: Any, quantized: Path) -> None:
    """Recomputed without the command: the folder through `genie_cli.load`, the digits by hand."""
    options = ("--data", "digits", "--quantized", quantized, "--json")
    figures = one_object(genie("evaluate", *DIGITS, *options).stdout)
    pixels, labels = split(train=False)
    with torch.no_grad():
        guesses = load("digits_resnet", quantized)(normalize_pixels(pixels, INPUT_SPEC)).argmax(1)
    right = guesses == labels
    assert figures["top1"] == pytest.approx(100 * right.float().mean().item(), abs=1e-3)
    assert figures["per_class"] == {
        str(digit): pytest.approx(100 * right[labels == digit].float().mean().item(), abs=1e-3) for digit in range(10)
    }
    again = one_object(genie("evaluate", *DIGITS, *options, "--batch-size", 7).stdout)
    assert again == figures


@pytest.mark.parametrize("options", [(), ("--folded",)])
def test_evaluating_the_teacher(genie: Any, options: tuple[str, ...]) -> None:
    result = genie("evaluate", *DIGITS, "--data", "digits", "--json", *options)
    figures = one_object(result.stdout)
    assert figures.keys() == {"model", "metric", "num_images", "top1", "top5", "per_class"}
    assert figures["top1"] > 99


def test_evaluation_for_people(genie: Any, quantized: Path) -> None:
    options = ("--data", "digits", "--quantized", quantized, "--out", "m.json")
    shown = genie("evaluate", *DIGITS, *options).stdout
    figures = json.loads(Path("m.json").read_text())
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert f"top1 {figures['top1']:.2f} %" in lines
    assert f"drop {figures['drop']:.2f} points" in lines
    assert f"9 {figures['per_class']['9']:.2f}" in lines


def test_many_classes_show_the_weakest(genie: Any, networks: Path) -> None:
    source = networks.read_text() + "\n\ndef many():\n    torch.manual_seed(0)\n    net = other()\n"
    Path("many.py").write_text(source + "    net.fc = nn.Linear(64, 30)\n    return net\n")
    pixels, _ = split(train=False)
    save_file({"images": pixels[:60], "labels": torch.arange(60) % 30}, "data.safetensors")
    model = ("--model", "many.py:many", "--num-channels", 1, "--input-size", 16, "--mean", 0.3, "--std", 0.3)
    shown = genie("evaluate", *model, "--data", "data.safetensors").stdout
    assert "Weakest classes" in shown
    assert len(shown.partition("Weakest classes")[2].strip().splitlines()) == 6


# --- inspect, models and report


def test_inspect_model(genie: Any) -> None:
    result = genie("inspect", "digits_resnet", "--json", "--weight-bits", 3, "--activation-bits", 5)
    described = one_object(result.stdout)
    assert result.stderr == ""
    bits = {layer["name"]: (layer["weight_bits"], layer["activation_bits"]) for layer in described["layers"]}
    assert bits["conv1"] == (8, None)
    assert bits["layer1.0.conv1"] == (3, 8)
    assert bits["layer2.0.conv2"] == (3, 5)
    assert bits["fc"] == (8, 8)
    assert described["input"]["size"] == 16
    assert described["num_classes"] == 10
    assert [unit["name"] for unit in described["units"]] == ["conv1", "layer1", "layer2", "layer3", "fc"]
    assert len(described["strided"]) == 4
    shown = genie("inspect", "digits_resnet", "--protocol", "ait").stdout
    assert re.search(r"\nfc +linear +10x64 +4 +fc.input +4\n", shown)
    assert "input     1x16x16, mean 0.3055, std 0.3185\n" in shown
    assert "weights   77,072 in 10 layers\n" in shown
    assert "layer3.0.conv1, layer3.0.conv2, layer3.0.downsample.0\n" in shown


def test_inspect_images(genie: Any, images: Path) -> None:
    fields = one_object(genie("inspect", images, "--json").stdout)
    assert (fields["kind"], fields["num_images"], fields["dtype"], fields["seed"]) == ("images", 8, "float16", 0)
    assert fields["config"]["num_steps"] == 2
    shown = genie("inspect", images).stdout
    assert shown.startswith(f"{images}\n")
    assert f"teacher_sha256  {fields['teacher_sha256']}\n" in shown
    assert "num_steps 2" in rows(shown)  # a table of its own
    stored = load_images(images)
    pixels = stored.images.double().numpy() * stored.metadata.input.std[0] + stored.metadata.input.mean[0]
    outside = ((pixels < 0) | (pixels > 1)).mean()
    assert fields["statistics"]["mean"] == pytest.approx([pixels.mean()], abs=1e-6)
    assert fields["statistics"]["std"] == pytest.approx([pixels.std()], abs=1e-6)
    assert fields["statistics"]["share_outside"] == pytest.approx(outside, abs=1e-3)
    assert f"channel 0 mean {pixels.mean():.4f}, std {pixels.std():.4f}" in rows(shown)


def test_inspect_quantized(genie: Any, quantized: Path) -> None:
    fields = one_object(genie("inspect", quantized, "--json").stdout)
    more = {key: fields.pop(key) for key in ("units", "num_bytes", "num_float_bytes")}
    assert fields == one_object(genie("inspect", quantized / "weights.safetensors", "--json").stdout)
    assert (fields["kind"], fields["preset"], fields["teacher"]) == ("quantized_weights", "minmax", "digits_resnet")
    assert fields["weights"]["fc"] == {"axis": 0, "bits": 8, "grid": "asymmetric", "shape": [10, 64]}
    shown = genie("inspect", quantized).stdout
    lines = rows(shown)
    assert "layer2.0.conv1 32x16x3x3 4 asymmetric" in lines
    assert "layer2.0.conv1.input 4 unsigned" in lines
    metrics = json.loads((quantized / "metrics.json").read_text())
    assert [unit["relative_error"] for unit in more["units"]] == [unit["relative_error"] for unit in metrics["units"]]
    names = ("weights.safetensors", "step_sizes.safetensors")
    assert more["num_bytes"] == sum((quantized / name).stat().st_size for name in names)
    numbers = sum(value.numel() for value in load_quantized(quantized).parameters.values())
    numbers += sum(weight.codes.numel() for weight in load_quantized(quantized).weights.values())
    assert more["num_float_bytes"] == 4 * numbers
    times = more["num_float_bytes"] / more["num_bytes"]
    assert f"{times:.1f} times smaller than 310 kB in float" in shown
    packed = (32 * 16 * 9 + 32 * 32 * 9 + 32 * 16) * 4 // 8
    unit = metrics["units"][2]
    assert (
        f"layer2 layer2.0.conv1, layer2.0.conv2, layer2.0.downsample.0 0 4 {packed / 1000:.2f} kB "
        f"{unit['relative_error']:.4f}"
    ) in lines


def test_inspect_says_what_a_metrics_file_is(genie: Any, quantized: Path) -> None:
    genie("evaluate", *DIGITS, "--quantized", quantized, "--data", "digits", "--num-images", 20, "--out", "m.json")
    figures = json.loads(Path("m.json").read_text())
    shown = genie("inspect", "m.json").stdout
    assert shown.startswith("m.json: figures of 'genie evaluate --out'\n")
    assert f"top1 {figures['top1']:.2f} %" in rows(shown)
    assert one_object(genie("inspect", "m.json", "--json").stdout) == {"file": "evaluation", **figures}
    shown = genie("inspect", quantized / "metrics.json").stdout
    assert "figures of 'genie quantize'" in shown
    assert re.search(r"\nlayer3 .*layer3\.0\.downsample\.0 ", shown)


def test_closing_tables_tell_size_error_and_the_next_command(genie: Any) -> None:
    weights = files("genie_cli.models") / "assets/digits_resnet.safetensors"
    named = (*DIGITS, "--weights", str(weights))
    shown = rows(genie("synthesize", *named, "--n", 8, "--num-steps", 2, "--out", "my images.safetensors").stdout)
    assert "look genie show 'my images.safetensors'" in shown
    told = f"genie quantize --model digits_resnet --weights {weights} --images 'my images.safetensors'"
    assert f"next {told}" in shown
    shown = rows(genie(*shlex.split(told)[1:], "--num-steps", 2).stdout)
    units = json.loads(Path("quantized/metrics.json").read_text())["units"]
    worst = max(units, key=lambda unit: unit["relative_error"])
    mean = sum(unit["relative_error"] for unit in units) / len(units)
    assert f"error mean {mean:.4f}, worst {worst['relative_error']:.4f} ({worst['name']})" in shown
    assert any(re.fullmatch(r"size 5\d\.\d kB, 5\.\d times smaller than 310 kB in float", line) for line in shown)
    told = next(line for line in shown if line.startswith("next "))
    assert told.endswith("--quantized quantized --data digits")
    shown = rows(genie(*shlex.split(told)[2:], "--num-images", 5).stdout)
    assert f"next genie export --model digits_resnet --weights {weights} --quantized quantized" in shown


def test_models(genie: Any) -> None:
    listed = json.loads(genie("models", "--json").stdout)
    by_name = {entry["name"]: entry for entry in listed}
    assert by_name["digits_resnet"] == {
        "name": "digits_resnet", "origin": "embedded", "input": [1, 16, 16], "num_parameters": 77754
    }  # fmt: skip
    assert by_name["cifar_resnet20"]["origin"] == "needs --weights"
    assert {"resnet18", "mobilenet_v2", "regnet_x_800mf"} <= by_name.keys()
    assert "11,689,512" in genie("models").stdout


def test_report_compares_models(genie: Any) -> None:
    for name, model, top1 in (("a", "resnet18", 70.5), ("b", "resnet50", 75.25)):
        Path(name).mkdir()
        Path(name, "metrics.json").write_text(json.dumps({"model": model, "top1": top1, "num_images": 10}))
    result = genie("report", "a/metrics.json", "b/metrics.json", "--out", "compared")
    assert result.stdout.splitlines()[2].split() == ["a", "resnet18", "70.50"]
    assert "| b | resnet50 | 75.25 | 10 |" in Path("compared/table.md").read_text()
    assert json.loads(Path("compared/table.json").read_text())["b"]["model"] == "resnet50"
    assert result.stderr == "Written to compared: table.md, table.json, table.csv, figures.json\n"
