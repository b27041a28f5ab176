"""Oblong images, one channel, and several outputs, from the images to the table: through every command."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from typer.testing import CliRunner

from genie_cli import load
from genie_cli.app import app
from genie_cli.artifacts.images import load_images
from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.data.tensors import open_tensors
from genie_cli.models.graph.outputs import named_outputs
from tests.support.killed_command import run_killed
from tests.support.networks import plain_input
from tests.support.shapes import SOURCE

SIZES = {"plate": (3, 24, 94), "keyword": (1, 49, 10)}
OUTPUTS = {
    "plate": ("output",),
    "keyword": ("output",),
    "plate_heads": ("text", "head.region", "head.box"),
    "keyword_heads": ("keyword", "loud"),
}
LOGITS = {"plate_heads": "head.region", "keyword_heads": "keyword"}


@pytest.fixture(autouse=True)
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shapes.py").write_text(SOURCE)


def genie(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def model(name: str) -> tuple[str, ...]:
    channels, height, width = SIZES[name.partition("_")[0]]
    plain = ",".join("0" for _ in range(channels)), ",".join("1" for _ in range(channels))
    size = ("--input-size", f"{height}x{width}", "--num-channels", str(channels))
    options = (*size, "--mean", plain[0], "--std", plain[1])
    return (f"shapes.py:{name}", *options)


def network(name: str) -> nn.Module:
    spec = importlib.util.spec_from_file_location("shapes", "shapes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    built: nn.Module = getattr(module, name)()
    return built


def labelled_images(name: str) -> Path:
    """A file of images with the classes that the network itself decides for."""
    shape = SIZES[name.partition("_")[0]]
    pixels = torch.randint(0, 256, (12, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    save_file({"images": pixels, "labels": torch.zeros(12, dtype=torch.int64)}, "data.safetensors")
    images = next(open_tensors(Path("data.safetensors"), plain_input(shape[0], shape[1:])).batches(12))[0]
    with torch.no_grad():
        scores = dict(named_outputs(network(name)(images)))[LOGITS.get(name, "output")]
    save_file({"images": pixels, "labels": scores.argmax(1)}, "data.safetensors")
    return Path("data.safetensors")


def leaves(returned: Any) -> tuple[Any, list[Tensor]]:
    values, spec = pytree.tree_flatten(returned)
    return spec, values


def slow(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["plate_heads", slow("keyword"), slow("plate"), slow("keyword_heads")])
def test_the_whole_way(name: str) -> None:
    shape, arguments = SIZES[name.partition("_")[0]], model(name)
    described = json.loads(genie("inspect", *arguments, "--json"))
    assert tuple(output["name"] for output in described["outputs"]) == OUTPUTS[name]
    assert described["input"]["size"] == list(shape[1:])

    few = ("--model", *arguments, "--n", 6, "--batch-size", 3, "--num-steps", 3)
    genie("synthesize", *few, "--out", "generated.safetensors")
    genie("synthesize", *few, "--preset", "zeroq", "--out", "learned.safetensors")
    for file in ("generated", "learned"):
        images = load_images(Path(f"{file}.safetensors"))
        assert images.images.shape == (6, *shape) and images.images.std() > 0.1

    # the image set says the size
    quantize = ("quantize", "--model", arguments[0], "--images", "generated.safetensors", "--weight-bits", 8)
    logits = ("--logits", LOGITS[name]) if name in LOGITS else ()  # the folder records it
    quantize = (*quantize, "--activation-bits", 8, "--num-steps", 6, "--batch-size", 3, *logits)
    genie(*quantize, "--out", "learned")
    genie(*quantize, "--preset", "minmax", "--out", "nearest")
    metadata, metrics = load_quantized(Path("learned")).metadata, load_quantized(Path("learned")).metrics
    assert metadata.outputs == OUTPUTS[name] and metadata.input.shape == shape
    assert set(metrics["output_errors"]) == set(metrics["probe_outputs"]) == set(OUTPUTS[name])
    assert all(0 < error < 0.05 for error in metrics["output_errors"].values()), metrics["output_errors"]
    assert "those that were recorded" in genie("verify", "learned", "--model", arguments[0])

    images = torch.rand(5, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (spec, wanted), (own, found) = leaves(network(name)(images)), leaves(load(network(name), "learned")(images))
    assert repr(own) == repr(spec)
    for one, other in zip(found, wanted, strict=True):
        if isinstance(other, Tensor):
            assert one.shape == other.shape and (one - other).norm() < 0.3 * other.norm()
        else:
            assert one == other

    evaluate = ("evaluate", "--model", arguments[0], "--data", labelled_images(name))
    for folder in ("learned", "nearest"):
        genie(*evaluate, "--quantized", folder, "--out", f"{folder}.json")
        figures = json.loads(Path(f"{folder}.json").read_text())
        assert figures["num_images"] == 12 and figures["teacher_top1"] == 100 and figures["agreement"] > 50
    assert "learned" in genie("report", "learned.json", "nearest.json")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plate_heads", "keyword"])
def test_a_killed_run_goes_on_to_the_same_bytes(name: str) -> None:
    arguments = model(name)
    genie("synthesize", "--model", *arguments, "--n", 6, "--num-steps", 2, "--preset", "zeroq")

    def command(out: str) -> list[str]:
        options = ("--num-steps", "60", "--batch-size", "3", "--device", "cpu", "--precision", "fp32")
        return ["quantize", "--model", arguments[0], *options, "--checkpoint-interval", "0", "--out", out]

    genie(*command("whole"))
    run_killed(*command("resumed"))
    result = CliRunner().invoke(app, command("resumed"))
    assert result.exit_code == 0, result.output
    assert "going on where an earlier run was" in result.stderr
    for file in ("weights.safetensors", "step_sizes.safetensors", "metrics.json"):
        assert (Path("resumed") / file).read_bytes() == (Path("whole") / file).read_bytes()
