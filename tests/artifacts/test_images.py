"""Image sets: what is stored, what comes back, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from genie_cli.artifacts.images import ImageSet, ImagesMetadata, encode_images, load_images, save_images
from genie_cli.artifacts.metadata import encode, file_sha256, tensors_sha256, write_bytes
from genie_cli.config import InputSpec
from genie_cli.errors import InputError, UsageError
from tests.support.damaged import damaged_copies

INPUT = InputSpec(num_channels=3, size=4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def metadata(**changes: Any) -> ImagesMetadata:
    fields: dict[str, Any] = {
        "teacher": "resnet18",
        "teacher_sha256": "0" * 64,
        "config": {"num_steps": 4000, "swing": True},
        "seed": 0,
        "input": INPUT,
        "tool_version": "1.0",
        "torch_version": "2",
        "device_kind": "cpu",
        "num_images": 5,
        "dtype": "float16",
    }
    return ImagesMetadata(**{**fields, **changes})


def normalised_images(seed: int = 0) -> torch.Tensor:
    return torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def saved(path: Path, dtype: Any = "float16") -> Path:
    save_images(path, encode_images(normalised_images(), dtype, INPUT), metadata(dtype=dtype))
    return path


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_round_trip(tmp_path: Path, dtype: Any) -> None:
    path = saved(tmp_path / "images.safetensors", dtype)
    images = load_images(path)
    assert len(images) == 5
    assert images.metadata == metadata(dtype=dtype, content_sha256=tensors_sha256({"images": images.images}))
    assert images.sha256 == file_sha256(path)
    assert torch.equal(images.images, encode_images(normalised_images(), dtype, INPUT))
    assert names(tmp_path) == ["images.safetensors"]


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_two_saves_write_the_same_bytes(tmp_path: Path, dtype: Any) -> None:
    assert saved(tmp_path / "a", dtype).read_bytes() == saved(tmp_path / "b", dtype).read_bytes()


def test_real_images_have_no_teacher(tmp_path: Path) -> None:
    real = metadata(teacher=None, teacher_sha256=None, seed=None)
    save_images(tmp_path / "a", normalised_images().half(), real)
    found = load_images(tmp_path / "a").metadata
    assert found == real.model_copy(update={"content_sha256": found.content_sha256})


def test_content_is_compared_with_its_hash(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", "uint8")
    tensors = {"images": load_images(path).images}
    known = metadata(dtype="uint8", content_sha256=tensors_sha256(tensors))
    tensors["images"][0, 0, 0, 0] ^= 1
    path.write_bytes(write_bytes(tensors, encode(known)))
    with pytest.raises(InputError, match=r"a is damaged: .*hash differs.* Write it again with 'genie synthesize'"):
        load_images(path)
    path.write_bytes(write_bytes(tensors, encode(metadata(dtype="uint8"))))  # from before there were hashes
    assert torch.equal(load_images(path).images, tensors["images"])


def test_float16_is_untouched_for_the_same_normalisation(tmp_path: Path) -> None:
    images = load_images(saved(tmp_path / "a"))
    assert torch.equal(images.normalized(INPUT.mean, list(INPUT.std)), normalised_images().half().float())


@given(st.integers(0, 255), st.integers(0, 2))
def test_every_pixel_survives_uint8(pixel: int, channel: int) -> None:
    pixels = torch.full((1, 3, 4, 4), pixel, dtype=torch.uint8)
    stored = ImageSet(pixels, metadata(dtype="uint8", num_images=1), "")
    normalised = stored.normalized(INPUT.mean, INPUT.std)
    expected = (pixel / 255 - INPUT.mean[channel]) / INPUT.std[channel]
    assert normalised[0, channel, 0, 0].item() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(encode_images(normalised, "uint8", INPUT), pixels)


def test_uint8_clips() -> None:
    extreme = torch.tensor([-1e6, 1e6]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    assert encode_images(extreme, "uint8", INPUT)[:, 0, 0, 0].tolist() == [0, 255]


def channelwise(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(3, 1, 1)


def test_another_normalisation_gives_the_same_pixels(tmp_path: Path) -> None:
    images = load_images(saved(tmp_path / "a"))
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    pixels = images.images.double() * channelwise(INPUT.std) + channelwise(INPUT.mean)
    expected = ((pixels - channelwise(mean)) / channelwise(std)).float()
    assert_close(images.normalized(mean, std), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("indices", [[3, 1], (3, 1), torch.tensor([3, 1])], ids=["list", "tuple", "tensor"])
def test_indices_choose_images(tmp_path: Path, indices: Any) -> None:
    images = load_images(saved(tmp_path / "a"))
    everything = images.normalized(INPUT.mean, INPUT.std)
    assert torch.equal(images.normalized(INPUT.mean, INPUT.std, indices), everything[[3, 1]])


def test_slices_and_nothing(tmp_path: Path) -> None:
    images = load_images(saved(tmp_path / "a"))
    assert images.normalized(INPUT.mean, INPUT.std, slice(1, 3)).shape == (2, 3, 4, 4)
    assert images.normalized(INPUT.mean, INPUT.std, []).shape == (0, 3, 4, 4)


def test_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"have 3 channel\(s\), the network takes 1"):
        load_images(saved(tmp_path / "a")).normalized((0.5,), (0.5,))


def test_one_number_holds_for_all_channels(tmp_path: Path) -> None:
    images = load_images(saved(tmp_path / "a"))
    assert torch.equal(images.normalized(0.5, torch.tensor(0.25)), images.normalized((0.5,) * 3, [0.25] * 3))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (0.5, (0, 0.5, 0.5), r"std = \(0.0, 0.5, 0.5\) cannot be used: give numbers above 0"),
        (0.5, -1.0, "give numbers above 0"),
        ((0.5, float("nan"), 0.5), 0.5, "mean = .* cannot be used: give a finite number"),
        (0.5, float("inf"), "std = inf cannot be used"),
        ("half", 0.5, "mean = 'half' cannot be used"),
        (None, 0.5, "mean = None cannot be used"),
        ([[0.5]], 0.5, "mean = .* cannot be used"),
        ((0.5, 0.5, 0.5), (0.5,), r"mean has 3 value\(s\) and std 1"),
    ],
)
def test_a_normalisation_that_cannot_be_used(mean: Any, std: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load_images(saved(tmp_path / "a")).normalized(mean, std)


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged_images_are_not_encoded(dtype: Any, value: float) -> None:
    images = normalised_images()
    images[2, 1, 0, 3] = value
    with pytest.raises(InputError, match="NaN or infinity"):
        encode_images(images, dtype, INPUT)


def test_float16_overflow_is_refused() -> None:
    with pytest.raises(InputError, match="NaN or infinity"):
        encode_images(torch.full((1, 3, 4, 4), 1e5), "float16", INPUT)


def test_save_refuses_images_that_would_not_load(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has shape"):
        save_images(tmp_path / "a", normalised_images()[:4].half(), metadata())
    with pytest.raises(InputError, match=r"is torch\.float32"):
        save_images(tmp_path / "a", normalised_images(), metadata())
    assert names(tmp_path) == []


def with_nan() -> torch.Tensor:
    images = normalised_images().half()
    images[4, 2, 3, 3] = float("nan")
    return images


@pytest.mark.parametrize(
    ("tensors", "changes", "message"),
    [
        ({}, {}, "must hold one tensor 'images', it holds none"),
        ({"x": torch.zeros(1)}, {}, "must hold one tensor 'images', it holds x"),
        ({"images": normalised_images().half(), "x": torch.zeros(1)}, {}, "it holds images, x"),
        ({"images": normalised_images()}, {}, "tensor 'images' is torch.float32"),
        ({"images": torch.zeros(5, 3, 4, 4, dtype=torch.uint8)}, {}, "its metadata say float16"),
        ({"images": torch.zeros(5, 3, 16, dtype=torch.float16)}, {}, "tensor 'images' has shape"),
        ({"images": torch.zeros(5, 3, 4, 5, dtype=torch.float16)}, {}, "tensor 'images' has shape"),
        ({"images": torch.zeros(4, 3, 4, 4, dtype=torch.float16)}, {}, "tensor 'images' has shape"),
        ({"images": torch.zeros(0, 3, 4, 4, dtype=torch.float16)}, {"num_images": 0}, "at 'num_images'"),
        ({"images": with_nan()}, {}, "tensor 'images' must be finite"),
        ({"images": normalised_images().half()}, {"dtype": "float64"}, "at 'dtype'"),
        ({"images": normalised_images().half()}, {"extra": 1}, "at 'extra'"),
        ({"images": normalised_images().half()}, {"input": {"num_channels": 1}}, "at 'input': mean has 3 values"),
    ],
)
def test_load_refuses(tmp_path: Path, tensors: dict[str, torch.Tensor], changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "images.safetensors"
    path.write_bytes(write_bytes(tensors, encode({**metadata().model_dump(mode="json"), **changes})))
    with pytest.raises(InputError) as caught:
        load_images(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_paths_that_are_no_image_sets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_images(tmp_path / "absent")
    with pytest.raises(InputError, match="is a folder"):
        load_images(tmp_path)


def test_damaged_files_load_or_are_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole").read_bytes()
    path = tmp_path / "damaged"
    refused = 0
    for damaged in damaged_copies(whole, 400, seed=0):
        path.write_bytes(damaged)
        try:
            load_images(path)
        except InputError:
            refused += 1
    assert 0 < refused < 400
