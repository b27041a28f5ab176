"""Artifacts that genie 0.1.0 wrote (format1/README.md): every later genie reads them and finds in them what it did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import genie_cli
from genie_cli.app import app
from genie_cli.artifacts.images import load_images
from genie_cli.artifacts.metadata import tensors_sha256
from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.models.digits import INPUT_SPEC, digits_resnet
from genie_cli.runtime.distribution import SOLO
from genie_cli.work.folder import WorkFolder

FORMAT1 = Path(__file__).parent / "format1"
TEACHER_SHA256 = "bd525340752e9edec963bec75d26c001234cd46080f5270fbb95d59dda58b012"
IMAGES_SHA256 = {
    "float16": "55793ff61bd1a389e13bfcdf379591e527c8977d266f9f37b02233edbf0bb436",
    "uint8": "28bd937759ad186c9e397f85c36377e6869b8b9fb42cb9afb238ba59969b64e6",
}
MORE_BITS = {"conv1": 8, "fc": 8}
"""First and last layer in protocol `genie`."""
BLOCK_BITS = {"layer1.0.conv1": 8, "layer1.0.conv2": 8}
"""The layers that the override names."""


def genie(*arguments: object) -> str:
    """Standard output of a command that ends well."""
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="genie")
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    return outcome.stdout


@pytest.mark.parametrize(
    ("dtype", "content_sha256", "first", "last"),
    [
        (
            "float16",
            "465c9e9136fd0cf73f3a102899ba0bc9aa3fbd4f0ac97a2f67b62fb256cbdef3",
            [-0.6484375, -0.7763671875, -0.78466796875, -0.69970703125],
            [1.3115234375, 1.3310546875, 1.3310546875, 1.3310546875],
        ),
        (
            "uint8",
            "cac6b8c37a2df23c2240c8ef1a3e2fe7f66efad3b896834ffca8dd21b9a44551",
            [25, 15, 14, 21],
            [184, 186, 186, 186],
        ),
    ],
)
def test_image_sets_are_read(dtype: str, content_sha256: str, first: list[float], last: list[float]) -> None:
    image_set = load_images(FORMAT1 / f"images-{dtype}.safetensors")
    assert image_set.sha256 == IMAGES_SHA256[dtype]
    assert (image_set.images.dtype, image_set.images.shape) == (getattr(torch, dtype), (4, 1, 16, 16))
    assert image_set.images[0, 0, 0, :4].tolist() == first
    assert image_set.images[3, 0, 8, :4].tolist() == last
    metadata = image_set.metadata
    assert (metadata.content_sha256, metadata.dtype, metadata.num_images) == (content_sha256, dtype, 4)
    assert (metadata.teacher, metadata.teacher_sha256) == ("digits_resnet", TEACHER_SHA256)
    assert (metadata.input.mean, metadata.input.std) == (INPUT_SPEC.mean, INPUT_SPEC.std)
    assert (metadata.seed, metadata.tool_version) == (0, "0.1.0")


def test_both_image_sets_are_the_same_images() -> None:
    normalized, pixels = (
        load_images(FORMAT1 / f"images-{dtype}.safetensors").normalized(INPUT_SPEC.mean, INPUT_SPEC.std)
        for dtype in ("float16", "uint8")
    )
    black, white = ((value - INPUT_SPEC.mean[0]) / INPUT_SPEC.std[0] for value in (0, 1))
    rounding = 0.5 / 255 / INPUT_SPEC.std[0] + 1e-3  # half a pixel value, and float16's own
    assert float((normalized.clamp(black, white) - pixels).abs().max()) <= rounding


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_verify_accepts_an_image_set(dtype: str) -> None:
    said = genie("verify", FORMAT1 / f"images-{dtype}.safetensors", "--model", "digits_resnet")
    assert "tensors are those that were written" in said
    assert "the images were made for it" in said


@pytest.mark.parametrize(
    ("name", "content_sha256", "images", "bits", "codes", "row"),
    [
        (
            "genie-m-w4a4",
            "a53525158d8407239d071122a24588738647e0cab5d341cc6a6f14c79235493e",
            "float16",
            (4, MORE_BITS),
            [3, 5, 7, 0, 5, 3, 7, 8, 6],
            [-0.083065927028656, -0.041532963514328, 0.0],
        ),
        (
            "hardware-w2a4",
            "6bf43354730a4aaa9f6161c444bf1fad2de5887c8d908461401c35362a6f2595",
            "uint8",
            (2, BLOCK_BITS),
            [0, 0, 1, 0, 0, 0, 1, 1, 1],
            [-0.06491555273532867, -0.06491555273532867, 0.0],
        ),
    ],
)
def test_quantized_folders_are_read(
    name: str, content_sha256: str, images: str, bits: tuple[int, dict[str, int]], codes: list[int], row: list[float]
) -> None:
    artifact = load_quantized(FORMAT1 / name)
    metadata = artifact.metadata
    assert (metadata.content_sha256, metadata.teacher_sha256) == (content_sha256, TEACHER_SHA256)
    assert (metadata.images_sha256, metadata.preset) == (IMAGES_SHA256[images], "genie-m")
    assert len(artifact.weights) == 10
    assert {layer: weight.bits for layer, weight in artifact.weights.items() if weight.bits != bits[0]} == bits[1]
    weight = artifact.weights["layer2.0.conv1"]
    assert weight.codes[0, 0].flatten().tolist() == codes
    values = weight.scale[0] * (weight.codes[0, 0, 0].float() - weight.zero_point[0])
    assert values.tolist() == row
    assert artifact.parameters.keys() == {f"{layer}.bias" for layer in artifact.weights}


def test_step_sizes_are_read() -> None:
    activations = load_quantized(FORMAT1 / "hardware-w2a4").activations
    steps = {site: (step.step_size, step.bits, step.signed) for site, step in activations.items()}
    assert steps == {
        "layer1.0.conv1.input": (0.052099671214818954, 6, False),
        "layer1.0.conv2.input": (0.058304961770772934, 6, False),
        "layer2.0.conv1.input": (0.22977207601070404, 4, False),
        "layer2.0.conv2.input": (0.19011196494102478, 4, False),
        "layer3.0.conv1.input": (0.30148544907569885, 4, False),
        "layer3.0.conv2.input": (0.17707832157611847, 4, False),
        "avgpool.adaptive_avg_pool2d0.input": (0.3004624843597412, 4, False),
        "fc.input": (0.09964147210121155, 4, False),
        "fc.output": (0.35970595479011536, 4, True),
    }


@pytest.mark.parametrize(("name", "num_correct"), [("genie-m-w4a4", 536), ("hardware-w2a4", 534)])
def test_quantized_networks_compute_what_they_did(name: str, num_correct: int) -> None:
    """Processors round differently: one of the 537 digits may come out otherwise."""
    folder = FORMAT1 / name
    assert "those that were recorded" in genie("verify", folder, "--model", "digits_resnet")
    options = ("--model", "digits_resnet", "--data", "digits", "--device", "cpu", "--json")
    figures = json.loads(genie("evaluate", "--quantized", folder, *options))
    assert figures["num_images"] == 537
    assert abs(figures["top1"] / 100 * 537 - num_correct) < 1.01


@pytest.mark.parametrize("name", ["genie-m-w4a4", "hardware-w2a4"])
def test_the_library_loads_a_folder(name: str) -> None:
    network = genie_cli.load(digits_resnet(), FORMAT1 / name)
    image = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    recorded = torch.tensor(json.loads((FORMAT1 / name / "metrics.json").read_text())["probe_logits"])
    assert torch.linalg.vector_norm(network(image)[0] - recorded) <= 0.02 * torch.linalg.vector_norm(recorded)


def test_a_part_and_a_checkpoint_are_read(tmp_path: Path) -> None:
    work = WorkFolder(Path(shutil.copytree(FORMAT1 / "work", tmp_path / "work")))
    assert (work.num_parts(), work.has_checkpoint()) == (1, True)
    part, checkpoint = work.part("unit0"), work.checkpoint("unit1", SOLO)
    assert part is not None and checkpoint is not None
    assert part.facts == {"weights": [["conv1", 8]], "activations": [], "num_steps": 60}
    assert tensors_sha256(part.tensors) == "78432f7c4792e0cd47ac6420f1507d2f1bd1011483d9c5a8c8b1aeeffd0cd436"
    assert checkpoint.facts == {"step": 50}
    assert tensors_sha256(checkpoint.tensors) == "7320a9dec267ad7bb7d0a1d0ac2fcb3f0fdb5107b328d992d9818eebf9f698d4"


def test_a_run_goes_on_from_the_part_and_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that was interrupted, on a work folder that gives what the golden one holds.

    A unit that begins anew keeps a checkpoint at step 50; the first two units must not.
    """
    golden = WorkFolder(Path(shutil.copytree(FORMAT1 / "work", tmp_path / "work")))
    part, checkpoint, save = WorkFolder.part, WorkFolder.checkpoint, WorkFolder.save_checkpoint
    saved: list[str] = []

    def save_and_note(self: WorkFolder, name: str, *state: Any) -> None:
        saved.append(name)
        save(self, name, *state)

    monkeypatch.setattr(WorkFolder, "part", lambda _, name: part(golden, name))
    monkeypatch.setattr(WorkFolder, "checkpoint", lambda _, *asked: checkpoint(golden, *asked))
    monkeypatch.setattr(WorkFolder, "save_checkpoint", save_and_note)
    genie(
        *("quantize", "--model", "digits_resnet", "--device", "cpu", "--precision", "fp32"),
        *("--images", FORMAT1 / "images-float16.safetensors", "--batch-size", 4, "--num-steps", 60),
        *("--drop-prob", 0, "--checkpoint-interval", 0, "--out", tmp_path / "quantized"),
    )
    assert saved == ["unit2", "unit3", "unit4"]
    kept = golden.part("unit0")
    weight = load_quantized(tmp_path / "quantized").weights["conv1"]
    assert kept is not None and torch.equal(weight.codes, kept.tensors["weight0.codes"])
    assert torch.equal(weight.scale, kept.tensors["weight0.scale"])
