"""Real images for a quantizer: which are drawn, how they are prepared, and what the artifact says about them."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.datasets import CIFAR10
from typer.testing import CliRunner

from genie_cli.app import app
from genie_cli.artifacts.quantized_folder import load_quantized
from genie_cli.config import InputSpec, QuantizeConfig
from genie_cli.data.digits import split
from genie_cli.errors import InputError, UsageError
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.quantization.export import to_artifact
from genie_cli.quantization.images import calibration_images, open_image_set
from tests.support import ARITHMETIC, stages

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Color(nn.Module):
    """Three channels, any size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


def color(size: int, resize_size: int | None = None) -> Teacher:
    spec = InputSpec(num_channels=3, size=size, mean=MEAN, std=STD, resize_size=resize_size)
    return make_teacher("color", Color(), spec)


@pytest.fixture(scope="module")
def small() -> Teacher:
    return color(8)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randint(0, 256, (20, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def write(folder: Path, **tensors: Tensor) -> str:
    path = folder / "real.safetensors"
    save_file(tensors, path)
    return str(path)


def normalized(pixels: np.ndarray) -> np.ndarray:
    mean, std = (np.array(v, dtype=np.float64).reshape(3, 1, 1) for v in (MEAN, STD))
    return (pixels / 255 - mean) / std


# the draw


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**63 - 1), count=st.integers(1, 20), labelled=st.booleans())
def test_a_draw_is_the_head_of_a_permutation_under_the_seed(
    seed: int, count: int, labelled: bool, small: Teacher, pixels: Tensor, tmp_path: Path
):
    path = write(tmp_path, images=pixels, **({"labels": torch.arange(20)} if labelled else {}))
    global_state = torch.get_rng_state()
    found = open_image_set(path, small, count, seed)
    assert torch.equal(torch.get_rng_state(), global_state)
    rows = torch.randperm(20, generator=torch.Generator().manual_seed(seed))[:count]
    assert torch.equal(found.images, pixels[rows])
    assert found.sha256 == hashlib.sha256(pixels[rows].numpy().tobytes()).hexdigest()
    meta = found.metadata
    assert (meta.teacher, meta.teacher_sha256, meta.other_teachers, meta.config) == (None, None, {}, {})
    assert (meta.seed, meta.num_images, meta.dtype, meta.input) == (seed, count, "uint8", small.input)


def test_without_a_number_all_come_in_their_order(small: Teacher, pixels: Tensor, tmp_path: Path):
    found = open_image_set(write(tmp_path, images=pixels), small, None, 5)
    assert torch.equal(found.images, pixels) and found.metadata.seed is None


def test_what_a_quantizer_reads_is_normalised(small: Teacher, pixels: Tensor, tmp_path: Path):
    found = open_image_set(write(tmp_path, images=pixels), small, 7, 1)
    inputs = calibration_images(found, small, 7)
    rows = torch.randperm(20, generator=torch.Generator().manual_seed(1))[:7]
    assert len(inputs) == 7 and inputs[0:3].dtype == torch.float32
    np.testing.assert_allclose(inputs[0:7].numpy(), normalized(pixels[rows].double().numpy()), rtol=1e-5, atol=1e-6)


def test_more_than_there_are_is_a_usage_error(small: Teacher, pixels: Tensor, tmp_path: Path):
    path = write(tmp_path, images=pixels)
    assert len(open_image_set(path, small, 20, 0)) == 20
    with pytest.raises(UsageError, match=r"--num-images 21 is more than the 20 images of .*real\.safetensors"):
        open_image_set(path, small, 21, 0)


@pytest.mark.parametrize("shape", [(3, 8, 9), (3, 16, 16), (1, 8, 8)], ids=str)
def test_raw_tensors_of_another_size_are_refused(small: Teacher, tmp_path: Path, shape: tuple[int, ...]):
    path = write(tmp_path, images=torch.zeros(4, *shape, dtype=torch.uint8))
    with pytest.raises(InputError) as raised:
        open_image_set(path, small, None, 0)
    assert str(list(shape)) in str(raised.value) and "[3, 8, 8]" in str(raised.value)


def test_floats_are_refused(small: Teacher, tmp_path: Path):
    path = write(tmp_path, images=torch.zeros(4, 3, 8, 8))
    with pytest.raises(InputError, match=r"'images' of .* are float32, and pixels must be uint8"):
        open_image_set(path, small, None, 0)


# the sources


def test_digits_are_the_training_ones(digits_teacher: Teacher):
    train, test = (split(train=part)[0] for part in (True, False))
    found = open_image_set("digits", digits_teacher, None, 0)
    assert torch.equal(found.images, train) and len(train) == 1260
    drawn = open_image_set("digits", digits_teacher, 1260, 3).images
    assert torch.equal(drawn, train[torch.randperm(1260, generator=torch.Generator().manual_seed(3))])
    tested = {image.numpy().tobytes() for image in test}
    assert len(tested & {image.numpy().tobytes() for image in found.images}) < 5  # a few digits are drawn alike
    with pytest.raises(UsageError, match="--num-images 1261 is more than the 1260 images of digits"):
        open_image_set("digits", digits_teacher, 1261, 0)


def test_cifar10_are_the_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Files in the real format under MD5 sums of their own."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    values = np.random.default_rng(0)
    train = [values.integers(0, 256, (2, 3072), dtype=np.uint8) for _ in CIFAR10.train_list]

    def file(name: str, content: Any) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    names = [name for name, _ in CIFAR10.train_list]
    files = [file(name, {"data": data, "labels": [0, 1]}) for name, data in zip(names, train, strict=True)]
    monkeypatch.setattr(CIFAR10, "train_list", files)
    monkeypatch.setattr(CIFAR10, "test_list", [file("test_batch", {"data": train[0][:1] * 0, "labels": [0]})])
    meta = file("batches.meta", {"label_names": [str(i) for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta[1]})
    found = open_image_set(f"cifar10:{tmp_path}", color(32), 4, 2)
    rows = torch.randperm(10, generator=torch.Generator().manual_seed(2))[:4]
    np.testing.assert_array_equal(found.images.numpy(), np.concatenate(train).reshape(10, 3, 32, 32)[rows.numpy()])


def picture(path: Path, width: int, height: int, seed: int) -> Image.Image:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    image = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)
    image.save(path)
    return image


def test_image_files_go_through_the_preprocessing_of_the_model(tmp_path: Path):
    """The shorter side to 20 pixels, then the middle 16 of both."""
    sizes = {"a/1.png": (40, 60), "a/2.png": (48, 28), "b/1.png": (20, 20)}
    pictures = [picture(tmp_path / name, *size, seed) for seed, (name, size) in enumerate(sizes.items())]
    wanted = []
    for image in pictures:
        shorter = min(image.size)
        resized = image.resize(tuple(20 * side // shorter for side in image.size), Image.Resampling.BILINEAR)
        left, top = ((side - 16) // 2 for side in resized.size)
        wanted.append(np.asarray(resized.crop((left, top, left + 16, top + 16))).transpose(2, 0, 1))
    teacher = color(16, resize_size=20)
    found = open_image_set(f"imagefolder:{tmp_path}", teacher, None, 0)
    np.testing.assert_array_equal(found.images.numpy(), np.stack(wanted))
    rows = torch.randperm(3, generator=torch.Generator().manual_seed(4))[:2]
    drawn = open_image_set(f"imagefolder:{tmp_path}", teacher, 2, 4).images
    assert torch.equal(drawn, found.images[rows])


def test_only_the_drawn_files_are_read(tmp_path: Path):
    for i in range(6):
        picture(tmp_path / f"a/{i}.png", 16, 16, i)
    chosen = set(torch.randperm(6, generator=torch.Generator().manual_seed(0))[:3].tolist())
    for i in set(range(6)) - chosen:
        (tmp_path / f"a/{i}.png").write_bytes(b"no picture")
    assert len(open_image_set(f"imagefolder:{tmp_path}", color(16), 3, 0)) == 3
    with pytest.raises(InputError, match="it is not an image"):
        open_image_set(f"imagefolder:{tmp_path}", color(16), 4, 0)


# what is written


def test_the_artifact_names_no_teacher_of_the_images(small: Teacher, pixels: Tensor, tmp_path: Path):
    used = open_image_set(write(tmp_path, images=pixels), small, 8, 0)
    config = QuantizeConfig(preset="minmax", reconstruct=False, num_images=8)
    network = stages.quantize(small, calibration_images(used, small, 8), config)
    metadata = to_artifact(network, small, used, ARITHMETIC).metadata
    assert metadata.images_teacher_sha256 is None and metadata.teacher_sha256 == small.sha256
    rows = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:8]
    assert metadata.images_sha256 == hashlib.sha256(pixels[rows].numpy().tobytes()).hexdigest()


def genie(*args: object) -> Any:
    result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="genie")
    assert result.exit_code == 0, result.stderr
    return result


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    train = split(train=True)[0]
    command = ("quantize", "--model", "digits_resnet", "--images", "digits", "--num-images", 12, "--preset", "minmax")
    first = genie(*command, "--seed", 1, "--out", "a")
    assert "another teacher" not in first.stderr
    assert "12 of digits" in " ".join(first.stdout.split())
    genie(*command, "--seed", 2, "--out", "b")
    write(tmp_path, images=train, labels=torch.zeros(len(train), dtype=torch.int64))
    genie(*command, "--seed", 1, "--images", "real.safetensors", "--out", "c")
    a, b, c = (load_quantized(Path(name)).metadata for name in "abc")
    for seed, metadata in ((1, a), (2, b)):
        rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:12]
        assert metadata.images_sha256 == hashlib.sha256(train[rows].numpy().tobytes()).hexdigest()
        assert metadata.images_teacher_sha256 is None
    assert c == a  # where the images lie does not enter
    shown = json.loads(genie("inspect", "a", "--json").stdout)
    assert shown["images_sha256"] == a.images_sha256


def test_how_real_images_were_taken_is_told(small: Teacher, tmp_path: Path):
    for name, share in (("dark", 0.25), ("bright", 0.75)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((8, 8), share, np.float32)).save(tmp_path / name / "a.tif")
    images = open_image_set(f"imagefolder:{tmp_path}", small, None, 0)
    assert images.notes == (f"images of floats in {tmp_path}: 0 is taken as black and 1 as white.",)
    assert images.images.unique().tolist() == [64, 191]
