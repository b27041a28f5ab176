"""``genie show``: the images of a set as a picture, and as half blocks in a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genie_cli.artifacts.images import ImagesMetadata, encode_images, load_images, save_images
from genie_cli.artifacts.metadata import provenance
from genie_cli.config import InputSpec


def image_file(path: Path, images: torch.Tensor, spec: InputSpec) -> Path:
    """An image set of normalised `images`."""
    facts = provenance({}, 0, spec, "some", None)
    metadata = ImagesMetadata(**facts, teacher_sha256="0" * 64, num_images=len(images), dtype="float16")
    save_images(path, encode_images(images, "float16", spec), metadata)
    return path


def test_picture_has_the_pixels_of_the_set(genie: Any, images: Path) -> None:
    told = genie("show", images, "--out", "grid.png", "--num", 5).stderr
    assert told == "Written to grid.png: 5 of 8 images, 1x16x16\n"
    grid = np.asarray(Image.open("grid.png"))
    assert grid.shape == (2 * 16 + 1, 3 * 16 + 2, 3)
    stored = load_images(images)
    mean, std = stored.metadata.input.mean[0], stored.metadata.input.std[0]
    for place in range(5):
        row, column = divmod(place, 3)
        own = grid[row * 17 : row * 17 + 16, column * 17 : column * 17 + 16]
        pixels = stored.images[place, 0].float().numpy() * std + mean
        expected = np.clip(pixels * 255, 0, 255)
        assert np.abs(own - expected[..., None]).max() <= 0.51
    assert (grid[16] == 128).all() and (grid[17:, 34:] == 128).all()  # the gap, and the place of a sixth image


@pytest.mark.parametrize("num_channels", [2, 3])
def test_any_number_of_channels(genie: Any, num_channels: int) -> None:
    spec = InputSpec(num_channels=num_channels, size=(3, 5), mean=(0.0,) * num_channels, std=(1.0,) * num_channels)
    values = torch.zeros(1, num_channels, 3, 5)
    values[:, 0] = 1.0
    genie("show", image_file(Path("i.safetensors"), values, spec), "--out", "grid.png")
    grid = np.asarray(Image.open("grid.png"))
    assert grid.shape == (3, 5, 3)
    assert grid[0, 0].tolist() == ([255, 0, 0] if num_channels == 3 else [128, 128, 128])


def test_terminal_shows_half_blocks(images: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "30"}
    command = [sys.executable, "-m", "genie_cli", "show", str(images), "--num", "4"]
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # Linux: the other side is closed
        while piece := os.read(ours, 65536):
            shown += piece
    assert process.wait(60) == 0
    os.close(ours)
    lines = [line for line in shown.decode().splitlines() if "▀" in line]
    assert {line.count("▀") for line in lines} == {29}  # two images of 14 columns, and the gap
    assert len(lines) == 15  # 29 rows of pixels, two in each line
    assert re.search(r"\x1b\[38;2;\d+;\d+;\d+;48;2;\d+;\d+;\d+m▀", lines[0])


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["no.safetensors", "--out", "grid.png"], 3, "no.safetensors does not exist"),
        (["IMAGES"], 2, "--out grid.png"),
        (["IMAGES", "--out", "grid.jpg"], 2, "--out grid.jpg must end in .png"),
        (["IMAGES", "--out", "no/grid.png"], 3, "Output folder no does not exist"),
        (["IMAGES", "--out", "grid.png", "--num", "0"], 2, "--num"),
        (["QUANTIZED", "--out", "grid.png"], 3, "the folder of a quantized network, not an image set"),
    ],
)
def test_bad_input(genie: Any, images: Path, quantized: Path, arguments: list[str], code: int, told: str) -> None:
    given = {"IMAGES": str(images), "QUANTIZED": str(quantized)}
    error = genie("show", *(given.get(word, word) for word in arguments), code=code).stderr
    assert told in error
    assert list(Path.cwd().iterdir()) == []
