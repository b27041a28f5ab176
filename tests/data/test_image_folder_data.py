"""Image folders: the listing, the transforms against torchvision's own preset, and every refusal."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from genie_cli.config import InputSpec
from genie_cli.data.decode import decode_image
from genie_cli.data.image_folder import open_image_folder
from genie_cli.errors import InputError

SPEC = InputSpec(size=24, resize_size=28)
GRAY = InputSpec(num_channels=1, size=24, resize_size=28, mean=(0.4,), std=(0.3,))


def save_image(path: Path, width: int = 40, height: int = 30, seed: int = 0, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 5 + 1, width // 5 + 1, 3))
    pixels = np.kron(blocks, np.ones((5, 5, 1)))[:height, :width].astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "val"
    save_image(root / "n02" / "b.JPEG", 40, 30, 1)
    save_image(root / "n02" / "a.png", 30, 50, 2)
    save_image(root / "n01" / "it's.jpg", 33, 33, 3)
    save_image(root / "n10" / "gray.png", 64, 29, 4, "L")
    save_image(root / "n10" / "palette.png", 28, 28, 5, "P")
    save_image(root / "n10" / "alpha.png", 60, 41, 6, "RGBA")
    return root


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_images_are_those_of_torchvisions_preset(folder: Path, interpolation: str, num_workers: int):
    spec = SPEC.model_copy(update={"interpolation": interpolation})
    preset = ImageClassification(
        crop_size=24, resize_size=28, mean=spec.mean, std=spec.std, interpolation=InterpolationMode(interpolation)
    )
    reference = ImageFolder(str(folder), transform=preset)
    data = open_image_folder(folder, spec, num_workers)
    batches = list(data.batches(4))
    assert [len(labels) for _, labels in batches] == [4, 2]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(images, torch.stack([image for image, _ in reference]))
    assert labels.tolist() == reference.targets
    assert data.class_names == reference.classes == ["n01", "n02", "n10"]
    assert (data.num_images, data.num_classes) == (6, 3)


def test_gray_network_gets_gray_images(folder: Path):
    images, _ = next(open_image_folder(folder, GRAY).batches(6))
    assert images.shape == (6, 1, 24, 24)
    preset = ImageClassification(crop_size=24, resize_size=28, mean=GRAY.mean, std=GRAY.std)
    first = Image.open(folder / "n01" / "it's.jpg").convert("L")
    assert torch.equal(images[0], preset(first))


def test_without_resize_the_centre_is_cropped(tmp_path: Path):
    path = save_image(tmp_path / "x.png", 31, 26)
    pixels = decode_image(path, InputSpec(size=24))
    expected = np.asarray(Image.open(path))[1:25, 4:28].transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels.numpy(), expected)


@pytest.mark.parametrize(
    ("width", "height", "resize_size", "resized"),
    [
        (80, 60, (30, 40), (40, 30)),  # width x height, of the same proportions
        (90, 60, (30, 40), (45, 30)),  # wider: the height is covered
        (60, 60, (30, 40), (40, 40)),  # higher: the width is covered
        (31, 77, (40, 40), (40, 99)),  # as a number: the shorter side
    ],
)
def test_an_oblong_crop_of_an_image_that_just_covers_it(
    tmp_path: Path, width: int, height: int, resize_size: tuple[int, int], resized: tuple[int, int]
) -> None:
    path = save_image(tmp_path / "x.png", width, height)
    spec = InputSpec(size=(24, 36), resize_size=resize_size)
    pixels = decode_image(path, spec)
    whole = Image.open(path).convert("RGB").resize(resized, Image.Resampling.BILINEAR)
    top, left = round((resized[1] - 24) / 2), round((resized[0] - 36) / 2)
    expected = np.asarray(whole)[top : top + 24, left : left + 36].transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels.numpy(), expected)


def test_an_image_that_is_too_low_for_an_oblong_crop(tmp_path: Path) -> None:
    path = save_image(tmp_path / "x.png", 40, 20)
    with pytest.raises(InputError, match=r"40x20 pixels, smaller than the 36x24 crop .*width x height"):
        decode_image(path, InputSpec(size=(24, 36)))


def test_resize_is_antialiased(tmp_path: Path):
    stripes = np.zeros((96, 96), dtype=np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    pixels = decode_image(tmp_path / "stripes.png", GRAY.model_copy(update={"resize_size": 24})).float()
    assert (pixels - 127.5).abs().max() < 30


def test_first_so_many(folder: Path):
    data = open_image_folder(folder, SPEC, num_images=2)
    assert data.num_images == 2
    assert data.num_classes == 3
    assert next(data.batches(5))[1].tolist() == [0, 1]


def test_hidden_names_are_passed_over(folder: Path):
    save_image(folder / ".thumbnails" / "x.png")
    save_image(folder / "n01" / ".checkpoints" / "x.png")
    save_image(folder / "n01" / "._x.png")
    (folder / "n01" / "readme.txt").write_text("not an image")
    data = open_image_folder(folder, SPEC)
    assert data.class_names == ["n01", "n02", "n10"]
    assert data.num_images == 6


def test_missing_folder(tmp_path: Path):
    with pytest.raises(InputError, match=f"Image folder {tmp_path / 'none'} does not exist: the layout is FOLDER/"):
        open_image_folder(tmp_path / "none", SPEC)


def test_flat_folder_gets_the_layout_shown(tmp_path: Path):
    save_image(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"image files but no class folders.*FOLDER/class_a/1\.jpg"):
        open_image_folder(tmp_path, SPEC)


def test_folder_with_nothing_in_it(tmp_path: Path):
    with pytest.raises(InputError, match="holds nothing"):
        open_image_folder(tmp_path, SPEC)


def test_empty_classes_are_named(folder: Path):
    for index in range(7):
        (folder / f"empty{index}").mkdir()
    with pytest.raises(InputError, match=r"empty0, empty1, empty2, empty3, empty4 and 2 more; put images"):
        open_image_folder(folder, SPEC)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("damage", ["text", "truncated", "empty", "broken link"])
def test_unreadable_image_is_named(folder: Path, damage: str, num_workers: int):
    path = folder / "n02" / "b.JPEG"
    content = path.read_bytes()
    if damage == "broken link":
        path.unlink()
        path.symlink_to(folder / "nowhere.jpg")
    else:
        path.write_bytes({"text": b"hello", "truncated": content[: len(content) // 2], "empty": b""}[damage])
    with pytest.raises(InputError) as raised:
        list(open_image_folder(folder, SPEC, num_workers).batches(2))
    assert str(raised.value).startswith(f"Image {path} cannot be read: ")
    assert "Traceback" not in str(raised.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_of_other_shares_are_not_read(folder: Path, num_workers: int):
    data = open_image_folder(folder, SPEC, num_workers)
    whole = list(data.batches(2))
    (folder / "n02" / "b.JPEG").write_bytes(b"hello")  # in the second of three batches
    share = list(data.batches(2, range(0, 3, 2)))
    for (images, labels), (expected_images, expected_labels) in zip(share, whole[::2], strict=True):
        assert torch.equal(images, expected_images)
        assert torch.equal(labels, expected_labels)
    assert list(data.batches(2, range(3, 3, 2))) == []
    with pytest.raises(InputError, match=r"b\.JPEG cannot be read"):
        list(data.batches(2, range(1, 3, 2)))


@pytest.mark.parametrize("resize_size", [None, 20], ids=["no resize", "resize below the crop"])
def test_image_smaller_than_the_crop_is_named(tmp_path: Path, resize_size: int | None):
    path = save_image(tmp_path / "a" / "small.png", 40, 21)
    spec = SPEC.model_copy(update={"resize_size": resize_size})
    with pytest.raises(InputError, match=f"Image {path} is 40x21 pixels.* smaller than the 24x24 crop"):
        list(open_image_folder(tmp_path, spec).batches(1))


def test_two_channels_are_refused(folder: Path):
    spec = InputSpec(num_channels=2, size=24, mean=(0.5, 0.5), std=(0.5, 0.5))
    with pytest.raises(InputError, match="1 or 3 channels, and the network takes 2"):
        open_image_folder(folder, spec)
