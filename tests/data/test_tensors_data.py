"""Images and labels in a safetensors file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from genie_cli.config import InputSpec
from genie_cli.data.tensors import open_tensors
from genie_cli.errors import InputError

SPEC = InputSpec(size=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
IMAGES = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
LABELS = torch.tensor([3, 0, 120, 5, 1, 1])


def write(folder: Path, **tensors: torch.Tensor) -> Path:
    path = folder / "data.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64, torch.uint16], ids=str)
def test_images_are_read_and_normalised(tmp_path: Path, dtype: torch.dtype):
    data = open_tensors(write(tmp_path, images=IMAGES, labels=LABELS.to(dtype)), SPEC)
    images, labels = next(data.batches(10))
    mean, std = (np.array(v, dtype=np.float32).reshape(3, 1, 1) for v in (SPEC.mean, SPEC.std))
    expected = (IMAGES.numpy().astype(np.float32) / np.float32(255) - mean) / std
    np.testing.assert_array_equal(images.numpy(), expected)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, LABELS)
    assert (data.num_images, data.num_classes, data.class_names) == (6, None, None)


def test_first_so_many(tmp_path: Path):
    data = open_tensors(write(tmp_path, images=IMAGES, labels=LABELS), SPEC, 2)
    assert data.labels.tolist() == [3, 0]


def test_other_tensors_are_no_matter(tmp_path: Path):
    path = write(tmp_path, images=IMAGES, labels=LABELS, ids=torch.arange(6))
    assert open_tensors(path, SPEC).num_images == 6


def test_missing_file(tmp_path: Path):
    with pytest.raises(InputError, match="does not exist: check the path given to --data or --images"):
        open_tensors(tmp_path / "none.safetensors", SPEC)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, share: float):
    path = write(tmp_path, images=IMAGES, labels=LABELS)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=f"Data file {path} cannot be read, it may be truncated"):
        open_tensors(path, SPEC)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"labels": LABELS}, "holds labels: it must hold 'images', uint8"),
        ({"pixels": IMAGES, "labels": LABELS}, "holds labels, pixels: it must hold"),
        ({"images": IMAGES.float(), "labels": LABELS}, "are float32, and pixels must be uint8"),
        ({"images": IMAGES, "labels": LABELS.float()}, "'labels' of .* are float32"),
        ({"images": IMAGES, "labels": LABELS > 2}, "'labels' of .* are bool"),
        ({"images": IMAGES[0].clone(), "labels": LABELS}, r"holds images \[3, 8, 8\] and labels \[6\]"),
        ({"images": IMAGES, "labels": LABELS[:5].clone()}, r"images \[6, 3, 8, 8\] and labels \[5\]"),
        ({"images": IMAGES, "labels": LABELS.view(6, 1)}, r"labels \[6, 1\]"),
        ({"images": IMAGES[:0].clone(), "labels": LABELS[:0].clone()}, "n at least 1"),
        ({"images": IMAGES[:, :1].clone(), "labels": LABELS}, r"images of \[1, 8, 8\].*network takes \[3, 8, 8\]"),
        ({"images": IMAGES[..., :7].clone(), "labels": LABELS}, r"images of \[3, 8, 7\].*network takes \[3, 8, 8\]"),
        ({"images": IMAGES, "labels": LABELS - 1}, "go down to -1: labels count from 0"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:24],
)
def test_unusable_content_is_named(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str):
    with pytest.raises(InputError, match=message):
        open_tensors(write(tmp_path, **tensors), SPEC)


UNLABELLED = {
    "none": {},
    "negative": {"labels": LABELS - 1},
    "float": {"labels": LABELS.float()},
    "too few": {"labels": LABELS[:2].clone()},
}


def test_images_without_labels_have_no_targets(tmp_path: Path):
    data = open_tensors(write(tmp_path, images=IMAGES), SPEC)
    assert (data.task, data.has_targets, data.num_images) == (None, False, len(IMAGES))
    assert [targets for _, targets in data.batches(4)] == [None, None]


@pytest.mark.parametrize("labels", UNLABELLED.values(), ids=UNLABELLED.keys())
def test_labels_do_not_matter_where_none_are_needed(tmp_path: Path, labels: dict[str, torch.Tensor]):
    data = open_tensors(write(tmp_path, images=IMAGES, **labels), SPEC, 5, labelled=False)
    assert data.labels.tolist() == [0] * 5
    assert torch.equal(data.pixels([4, 0]), IMAGES[[4, 0]])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.tensor(5, dtype=torch.uint8), r"holds images \[\]: it must hold 'images', uint8 .*width\], n at least"),
        (IMAGES[0].clone(), r"holds images \[3, 8, 8\]: "),
        (IMAGES[:0].clone(), r"holds images \[0, 3, 8, 8\]: "),
        (IMAGES.float(), "are float32, and pixels must be uint8"),
        (IMAGES[..., :7].clone(), r"images of \[3, 8, 7\].*network takes \[3, 8, 8\]"),
    ],
    ids=["a number", "one image", "no image", "floats", "other size"],
)
def test_unusable_images_without_labels_are_named(tmp_path: Path, images: torch.Tensor, message: str):
    with pytest.raises(InputError, match=message):
        open_tensors(write(tmp_path, images=images), SPEC, labelled=False)
