"""Images for the network as it was trained, and the merged one quantized, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import genie_cli
from tests.commands.conftest import Genie
from tests.support import reparameterizable

FILE = Path(reparameterizable.__file__)
INPUT = ("--num-channels", 1, "--input-size", 16, "--mean", 0.3, "--std", 0.3)
MODEL = ("--model", f"{FILE}:build")
MERGE = "--reparameterize"


@pytest.fixture
def quantized(genie: Genie) -> Path:
    """A quantized folder beside the images that it was made with."""
    small = ("--n", 4, "--batch-size", 4, "--num-steps", 2, "--device", "cpu", "--precision", "fp32")
    made = genie("synthesize", *MODEL, *INPUT, MERGE, *small, "--out", "images.safetensors")
    assert "images are synthesized for the network as it was trained" in made.stderr
    recipe = ("--num-steps", 2, "--batch-size", 4, "--device", "cpu", "--precision", "fp32", "--weight-bits", 8)
    done = genie("quantize", *MODEL, MERGE, "--images", "images.safetensors", *recipe, "--out", "q")
    assert "another teacher" not in done.stderr and "does not say what images" not in done.stderr
    assert "reparameterized by Block.switch_to_deploy() (4 times)" in done.stderr
    return Path("q")


def test_the_whole_way(quantized: Path, genie: Genie) -> None:
    described = json.loads(genie("inspect", f"{FILE}:build", *INPUT, MERGE, "--json").stdout)
    assert [layer["name"] for layer in described["layers"]] == [*(f"blocks.{i}.merged" for i in range(4)), "fc"]
    assert described["batch_norms"] == []
    fields = json.loads(genie("inspect", quantized, "--json").stdout)
    images = json.loads(genie("inspect", "images.safetensors", "--json").stdout)
    assert sorted(fields["weights"]) == sorted(layer["name"] for layer in described["layers"])
    assert fields["source_sha256"] == images["teacher_sha256"] == fields["images_teacher_sha256"]
    assert fields["teacher_sha256"] != fields["source_sha256"]
    assert "those that were recorded" in genie("verify", quantized, *MODEL, MERGE).stdout
    assert "the images were made for it" in genie("verify", "images.safetensors", *MODEL, MERGE).stdout
    assert "the images were made for it" in genie("verify", "images.safetensors", *MODEL).stdout
    torch.manual_seed(0)
    from safetensors.torch import save_file

    data = {"images": torch.randint(0, 256, (20, 1, 16, 16), dtype=torch.uint8), "labels": torch.arange(20) % 5}
    save_file(data, "data.safetensors")
    evaluated = genie("evaluate", *MODEL, MERGE, "--quantized", quantized, "--data", "data.safetensors", "--json")
    assert json.loads(evaluated.stdout)["num_images"] == 20


def test_the_folder_loads_into_either_form(quantized: Path) -> None:
    inputs = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    trained, merged = reparameterizable.build().eval(), reparameterizable.deployed().eval()
    with torch.no_grad():
        answers = [genie_cli.load(network, quantized)(inputs) for network in (trained, merged, f"{FILE}:build")]
        assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])
        assert float((answers[0] - trained(inputs)).norm() / trained(inputs).norm()) < 0.5


def test_the_option_is_named_where_it_is_missing_or_too_much(quantized: Path, genie: Genie) -> None:
    assert "give --reparameterize" in genie("verify", quantized, *MODEL, code=3).stderr
    recipe = ("--preset", "minmax", "--device", "cpu", "--precision", "fp32")
    genie("quantize", *MODEL, "--images", "images.safetensors", *recipe, "--out", "plain")
    assert "leave out --reparameterize" in genie("verify", "plain", *MODEL, MERGE, code=3).stderr
    refused = genie("inspect", "digits_resnet", MERGE, code=3)
    assert "No module of 'digits_resnet' can be merged" in refused.stderr


def test_a_params_file_may_ask_for_it(genie: Genie) -> None:
    Path("params.yaml").write_text(f"model:\n  name: {FILE}:build\n  reparameterize: true\n")
    recipe = ("--preset", "minmax", "--images", "digits", "--num-images", 8, "--device", "cpu", "--precision", "fp32")
    done = genie("quantize", "--params", "params.yaml", *INPUT, *recipe, "--out", "q")
    assert "reparameterized by" in done.stderr
