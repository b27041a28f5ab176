"""Folders of images alone, of images with class maps, and of images with boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as T

from genie_cli.config import InputSpec
from genie_cli.data.detection_folder import open_detection_folder, read_boxes
from genie_cli.data.flat_folder import open_flat_folder
from genie_cli.data.segmentation_folder import open_segmentation_folder
from genie_cli.errors import InputError

SPEC = InputSpec(size=8, resize_size=10, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def picture(path: Path, width: int = 8, height: int = 8, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def class_map(path: Path, classes: Any, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(classes, np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        image.putpalette([255, 0, 0, 0, 255, 0] * 128)
    image.save(path)
    return path


# --- images alone


def test_images_alone_are_sorted_and_have_no_targets(tmp_path: Path) -> None:
    for name in ("b/2.png", "a.png", "b/1.png"):
        picture(tmp_path / name, seed=len(name))
    picture(tmp_path / ".hidden" / "x.png")
    (tmp_path / "notes.txt").touch()
    samples = open_flat_folder(tmp_path, SPEC)
    assert [path.name for path in samples.paths] == ["a.png", "1.png", "2.png"]
    assert (samples.num_images, samples.task, samples.has_targets) == (3, None, False)
    assert [(len(images), targets) for images, targets in samples.batches(2)] == [(2, None), (1, None)]
    assert open_flat_folder(tmp_path, SPEC, num_images=2).num_images == 2


def test_images_of_the_inputs_proportions_are_taken_whole(tmp_path: Path) -> None:
    same, larger = picture(tmp_path / "same.png"), picture(tmp_path / "zlarger.png", 24, 24, 1)
    pixels = open_flat_folder(tmp_path, SPEC).pixels([0, 1])
    assert torch.equal(pixels[0], T.pil_to_tensor(Image.open(same)))
    assert torch.equal(pixels[1], T.pil_to_tensor(T.resize(Image.open(larger), [8, 8], antialias=True)))


def test_other_images_are_cropped_as_those_of_class_folders(tmp_path: Path) -> None:
    wide = picture(tmp_path / "wide.png", 40, 20)
    (pixels,) = open_flat_folder(tmp_path, SPEC).pixels([0])
    expected = T.center_crop(T.resize(Image.open(wide), [10], antialias=True), [8])
    assert torch.equal(pixels, T.pil_to_tensor(expected))


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no images"):
        open_flat_folder(tmp_path, SPEC)
    with pytest.raises(InputError, match="does not exist"):
        open_flat_folder(tmp_path / "no", SPEC)


# --- class maps


@pytest.mark.parametrize(
    "layout", ["{0}", "images/{0}|masks/{0}", "images/{0}|annotations/{0}", "images/{0}|labels/{0}"]
)
def test_layouts_of_class_maps(tmp_path: Path, layout: str) -> None:
    images, maps = (layout.split("|") * 2)[:2]
    for number, name in enumerate(("x/1", "2")):
        picture(tmp_path / f"{images.format(name)}.jpg", seed=number)
        class_map(tmp_path / f"{maps.format(name)}.png", np.full((8, 8), number))
    samples = open_segmentation_folder(tmp_path, SPEC)
    assert (samples.task, samples.has_targets, samples.num_images) == ("segmentation", True, 2)
    found = {path.stem: int(each[0, 0]) for path, each in zip(samples.paths, samples.targets(range(2)), strict=True)}
    assert found == {"1": 0, "2": 1}


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_a_pixel_of_a_class_map_is_its_class(tmp_path: Path, mode: str) -> None:
    picture(tmp_path / "1.jpg")
    classes = np.arange(64).reshape(8, 8)
    class_map(tmp_path / "1.png", classes, mode)
    (target,) = open_segmentation_folder(tmp_path, SPEC).targets([0])
    assert target.dtype == torch.int64 and np.array_equal(target.numpy(), classes)


def test_images_are_resized_whole_and_class_maps_are_not(tmp_path: Path) -> None:
    image = picture(tmp_path / "1.jpg", 20, 12)
    class_map(tmp_path / "1.png", np.zeros((12, 20)))
    picture(tmp_path / "2.jpg", 8, 8)
    class_map(tmp_path / "2.png", np.zeros((8, 8)))
    ((images, targets),) = open_segmentation_folder(tmp_path, SPEC).batches(2)
    assert [tuple(each.shape) for each in targets] == [(12, 20), (8, 8)]
    expected = T.pil_to_tensor(T.resize(Image.open(image), [8, 8], antialias=True))
    torch.testing.assert_close(images[0], (expected / 255 - 0.5) / 0.5)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda f: (f / "1.png").unlink(), "1.jpg has no class map"),
        (lambda f: class_map(f / "1.png", np.zeros((8, 9))), "is 9x8 pixels and its image 1.jpg is 8x8"),
        (lambda f: picture(f / "1.png"), "holds colours (RGB) and must hold one number per pixel"),
        (lambda f: (f / "1.png").write_bytes(b"no"), "1.png cannot be read"),
        (lambda f: (f / "1.jpg").write_bytes(b"no"), "1.jpg cannot be read"),
        (lambda f: (f / "1.jpg").unlink(), "holds no images with class maps"),
    ],
    ids=["missing", "size", "colours", "damaged map", "damaged image", "no images"],
)
def test_class_maps_that_are_refused(tmp_path: Path, spoil: Callable[[Path], Any], problem: str) -> None:
    picture(tmp_path / "1.jpg")
    class_map(tmp_path / "1.png", np.zeros((8, 8)))
    spoil(tmp_path)
    with pytest.raises(InputError) as raised:
        open_segmentation_folder(tmp_path, SPEC)
    assert problem in str(raised.value)


def test_class_maps_without_an_image_are_told(tmp_path: Path) -> None:
    picture(tmp_path / "1.jpg")
    for name in ("1.png", "2.png"):
        class_map(tmp_path / name, np.zeros((8, 8)))
    assert "1 class maps" in open_segmentation_folder(tmp_path, SPEC).warnings[0]


# --- boxes


def test_boxes_in_pixels_of_the_input(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "1.jpg", 30, 10)
    picture(tmp_path / "images" / "2.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_text("3 0.5 0.5 0.5 1\n\n 0 0.125 0.25 0.25 0.5\n")
    (tmp_path / "labels" / "9.txt").write_text("")
    samples = open_detection_folder(tmp_path, SPEC)
    ((images, targets),) = samples.batches(4)
    assert images.shape == (2, 3, 8, 8)
    assert targets[0]["boxes"].tolist() == [[2, 0, 6, 8], [0, 0, 2, 4]]
    assert targets[0]["labels"].tolist() == [3, 0]
    assert (targets[1]["boxes"].shape, targets[1]["labels"].shape) == ((0, 4), (0,))
    assert samples.notes[0].startswith("1 of 2 images have no text file")
    assert "1 text files" in samples.warnings[0]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 90), *[st.floats(0, 1)] * 4), max_size=6))
def test_lines_are_read_as_they_are(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, ...]]) -> None:
    path = tmp_path_factory.mktemp("labels") / "1.txt"
    path.write_text("".join(f"{' '.join(repr(value) for value in row)}\n" for row in rows))
    assert read_boxes(path).tolist() == [list(row) for row in rows]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("1 0.5 0.5 0.5", "it holds 4 values and not 5"),
        ("1 0.5 0.5 0.5 0.5 0.9", "it holds 6 values"),
        ("cat 0.5 0.5 0.5 0.5", "is not five numbers"),
        ("1.5 0.5 0.5 0.5 0.5", "class 1.5 is not a whole number"),
        ("-1 0.5 0.5 0.5 0.5", "class -1 is not"),
        ("nan 0.5 0.5 0.5 0.5", "class nan is not"),
        ("1 0.5 0.5 200 0.5", "200 is no share of the image"),
        ("1 0.5 nan 0.5 0.5", "nan is no share"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    picture(tmp_path / "1.jpg")
    (tmp_path / "1.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(InputError) as raised:
        open_detection_folder(tmp_path, SPEC)
    assert f"Label file {tmp_path / '1.txt'}, line 2: " in str(raised.value) and problem in str(raised.value)


def test_label_files_that_cannot_be_read(tmp_path: Path) -> None:
    picture(tmp_path / "1.jpg")
    with pytest.raises(InputError, match="holds no images with boxes"):
        open_detection_folder(tmp_path, SPEC)
    (tmp_path / "1.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"Label file .*1\.txt cannot be read"):
        open_detection_folder(tmp_path, SPEC)
