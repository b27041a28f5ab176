"""``--augmentation`` is what the same images beside their copies are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands.conftest import Genie


def test_flips_are_the_images_and_their_mirror_images(genie: Genie, tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_file({"images": pixels}, tmp_path / "own.safetensors")
    save_file({"images": torch.cat([pixels, pixels.flip(-1)])}, tmp_path / "both.safetensors")
    recipe = ("quantize", "--model", "digits_resnet", "--num-steps", 4, "--precision", "fp32", "--batch-size", 8)
    found = {}
    for name, images, kind in (("a", "own", "flips"), ("b", "both", "none"), ("c", "own", "none")):
        genie(*recipe, "--images", tmp_path / f"{images}.safetensors", "--augmentation", kind, "--out", tmp_path / name)
        found[name] = load_file(tmp_path / name / "weights.safetensors")
        found[name] |= load_file(tmp_path / name / "step_sizes.safetensors")
    assert found["a"].keys() == found["b"].keys()
    assert all(torch.equal(found["a"][key], found["b"][key]) for key in found["a"])
    assert any(not torch.equal(found["a"][key], found["c"][key]) for key in found["a"])


@pytest.mark.parametrize("kind", ["mirror", "cutmix,flips"])
def test_an_unknown_kind_is_refused(kind: str, genie: Genie, tmp_path: Path) -> None:
    result = genie("quantize", "--model", "digits_resnet", "--augmentation", kind, "--out", tmp_path / "q", code=2)
    assert "augmentation" in result.stderr
    assert "cutmix" in result.stderr


def test_a_recipe_that_learns_on_no_images_says_so(genie: Genie, tmp_path: Path) -> None:
    recipe = ("quantize", "--model", "digits_resnet", "--images", "digits", "--num-images", 8, "--preset", "minmax")
    result = genie(*recipe, "--augmentation", "flips", "--out", tmp_path / "q")
    assert "--augmentation changes nothing" in result.stderr
    assert "--augmentation" not in genie(*recipe, "--out", tmp_path / "r").stderr
