"""Which source the text of --data names."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from genie_cli.config import InputSpec
from genie_cli.data.image_folder import ImageFolderImages
from genie_cli.data.sources import names_source, open_data
from genie_cli.errors import InputError, UsageError

GRAY = InputSpec(num_channels=1, size=16, mean=(0.3,), std=(0.3,))


def test_digits():
    assert open_data("digits", GRAY, num_images=5).num_images == 5


def test_safetensors(tmp_path: Path):
    path = tmp_path / "test.safetensors"
    save_file({"images": torch.zeros(3, 1, 16, 16, dtype=torch.uint8), "labels": torch.arange(3)}, path)
    assert open_data(str(path), GRAY, num_images=2).num_images == 2


def test_image_folder_whose_path_holds_a_colon(tmp_path: Path):
    (tmp_path / "a:b" / "class").mkdir(parents=True)
    Image.new("L", (20, 20)).save(tmp_path / "a:b" / "class" / "x.png")
    data = open_data(f"imagefolder:{tmp_path / 'a:b'}", GRAY)
    assert isinstance(data, ImageFolderImages)


def test_cifar10_names_the_folder(tmp_path: Path):
    with pytest.raises(InputError, match=f"CIFAR-10 is missing or damaged in {tmp_path}"):
        open_data(f"cifar10:{tmp_path}", InputSpec(size=32))


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=str(tmp_path / "pictures")):
        open_data("imagefolder:~/pictures", GRAY)


@pytest.mark.parametrize("data", ["digits", "cifar10:FOLDER", "missing.safetensors"])
def test_input_that_does_not_fit_is_refused(data: str):
    with pytest.raises(InputError):
        open_data(data, InputSpec())


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ("digit", "Did you mean 'digits'?"),
        ("cifar:data", "Did you mean 'cifar10'?"),
        ("image_folder:val", "Did you mean 'imagefolder'?"),
        ("cifar10", "It is written cifar10:FOLDER."),
        ("imagefolder:", "It is written imagefolder:PATH."),
        ("digits:all", "It is written digits."),
        ("mnist.npz", "FILE.safetensors or FILE.py:FACTORY."),
        ("", "FILE.safetensors or FILE.py:FACTORY."),
        ("segment:x", "Did you mean 'segmentation'?"),
        ("images", "It is written images:FOLDER."),
        ("detection:", "It is written detection:FOLDER."),
    ],
)
def test_unknown_form_lists_the_forms(data: str, hint: str):
    with pytest.raises(UsageError) as raised:
        open_data(data, GRAY)
    assert str(raised.value).startswith(f"Unknown data '{data}': use digits, cifar10:FOLDER, imagefolder:PATH, ")
    assert str(raised.value).endswith(hint)


def test_bare_folder_gets_the_form(tmp_path: Path):
    with pytest.raises(UsageError, match=f"write imagefolder:{tmp_path}"):
        open_data(str(tmp_path), GRAY)


def test_no_images_is_refused():
    with pytest.raises(UsageError, match="num_images = 0"):
        open_data("digits", GRAY, num_images=0)


@pytest.mark.parametrize(
    "text",
    [
        "digits",
        "cifar10:/data",
        "cifar10",
        "imagefolder:a:b",
        "images:x",
        "segmentation:x",
        "detection:x",
        "/a:b/d.py:make",
        "a.b:make",
    ],
)
def test_names_of_sources(text: str):
    assert names_source(text)


@pytest.mark.parametrize("text", ["", "images.safetensors", "./digits", "digit", "/data:x/images.safetensors"])
def test_files_are_no_sources(text: str):
    assert not names_source(text)
