"""Image files of more than 8 bits: the picture is the one of 8 bits, whatever the type of its values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genie_cli.config import InputSpec
from genie_cli.data.decode import decode_image
from genie_cli.data.image_folder import open_image_folder
from genie_cli.data.value_range import in_8_bits, value_ranges
from genie_cli.errors import InputError

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
"""Brightness of a picture, black to white."""
GRAY = InputSpec(num_channels=1, size=8, mean=(0.0,), std=(1.0,))
COLOR = InputSpec(size=8)


def expected(share: np.ndarray = RAMP) -> torch.Tensor:
    return torch.from_numpy(np.rint(255 * share)).to(torch.uint8)[None]


def saved(values: np.ndarray, path: Path) -> Path:
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a.png", np.rint(65535 * RAMP).astype(np.uint16)),
        ("a.tif", np.rint(65535 * RAMP).astype(np.uint16)),
        ("a.tiff", np.rint(65535 * RAMP).astype(np.int32)),
        ("a.tif", np.rint(255 * RAMP).astype(np.int32)),
        ("a.tif", np.rint(4095 * RAMP).astype(np.int32)),
        ("a.tif", (RAMP > 0.5).astype(np.int32)),
        ("a.tif", RAMP.astype(np.float32)),
        ("a.tif", (1.0002 * RAMP).astype(np.float32)),
        ("a.tif", (255 * RAMP).astype(np.float32)),
        ("a.tif", (65535 * RAMP).astype(np.float32)),
        ("a.tif", (2 * RAMP - 1).astype(np.float32)),
        ("a.tif", (3.5 * RAMP).astype(np.float32)),
        ("a.tif", (40 * RAMP - 30).astype(np.float32)),
        ("a.tif", np.rint(255 * RAMP).astype(np.uint8)),
    ],
    ids=[
        "png 16", "tiff 16", "int32 of 16 bits", "int32 of 8 bits", "int32 of 12 bits", "mask", "float",
        "float with a rest", "float of 8 bits", "float of 16 bits", "signed float", "float beyond 1", "temperatures",
        "tiff 8",
    ],
)  # fmt: skip
def test_the_picture_is_that_of_8_bits(name: str, values: np.ndarray, tmp_path: Path) -> None:
    path = saved(values, tmp_path / name)
    wanted = expected((RAMP > 0.5).astype(float) if values.max() == 1 and values.dtype == np.int32 else RAMP)
    assert (decode_image(path, GRAY).int() - wanted.int()).abs().max() <= 1
    assert torch.equal(decode_image(path, COLOR), decode_image(path, GRAY).expand(3, 8, 8))


def test_a_tiff_of_12_bits_says_so(tmp_path: Path) -> None:
    values = np.rint(4095 * RAMP).astype(np.uint16)
    with Image.open(saved(values, tmp_path / "a.tif")) as image:
        image.tag_v2[258] = (12,)  # the tag of bits per sample: Pillow writes 16 only
        pixels = np.asarray(in_8_bits(image, tmp_path / "a.tif", {}))
    assert np.abs(pixels - np.rint(255 * RAMP)).max() <= 1


def test_a_portable_graymap_of_16_bits(tmp_path: Path) -> None:
    values = np.rint(1000 * RAMP).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 8 8 1000\n" + values.tobytes())
    assert (decode_image(tmp_path / "a.pgm", GRAY).int() - expected().int()).abs().max() <= 1


def test_the_largest_unsigned_integers_are_white(tmp_path: Path) -> None:
    values = np.rint((2**32 - 1) * RAMP).astype(np.uint32)
    path = saved(values.view(np.int32), tmp_path / "a.tif")
    content = path.read_bytes()
    entry = (339).to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little")
    assert content.count(entry + b"\x02\0") == 1  # signed, as Pillow writes them
    path.write_bytes(content.replace(entry + b"\x02\0", entry + b"\x01\0"))
    assert (decode_image(path, GRAY).int() - expected().int()).abs().max() <= 1


def test_pictures_of_a_set_have_one_range(tmp_path: Path) -> None:
    for label, brightest in (("dark", 0.1), ("light", 1.0)):
        (tmp_path / label).mkdir()
        saved((brightest * RAMP).astype(np.float32), tmp_path / label / "a.tif")
        saved(np.rint(65535 * brightest * RAMP).astype(np.int32), tmp_path / label / "b.tif")
    images = open_image_folder(tmp_path, GRAY)
    pixels = images.pixels(range(4)).int()
    assert pixels.amax((1, 2, 3)).tolist() == [26, 26, 255, 255]
    assert images.notes == (
        f"images of floats in {tmp_path}: 0 is taken as black and 1 as white.",
        f"images of 32-bit integers in {tmp_path}: 0 is taken as black and 65535 as white.",
    )
    first = open_image_folder(tmp_path, GRAY, num_images=1)
    assert int(first.pixels([0]).max()) == 26  # whatever number of images is kept


def test_files_that_cannot_be_read_have_no_range(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0nothing")
    assert value_ranges([tmp_path / "a.tif", tmp_path / "missing.tif"]) == {}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    values = RAMP.astype(np.float32)
    values[3, 3] = value
    path = saved(values, tmp_path / "a.tif")
    assert value_ranges([path]) == {}
    with pytest.raises(InputError, match=r"a.tif cannot be used: it holds NaN or infinity"):
        decode_image(path, GRAY)


def test_a_black_picture_stays_black(tmp_path: Path) -> None:
    assert int(decode_image(saved(np.zeros((8, 8), np.float32), tmp_path / "a.tif"), GRAY).max()) == 0
