"""CIFAR-10 from files in its real format; the published MD5 sums are replaced by those of the small files."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from genie_cli.config import InputSpec
from genie_cli.data.cifar10 import open_cifar10
from genie_cli.errors import InputError

SPEC = InputSpec(size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
TEST_PIXELS = np.random.default_rng(0).integers(0, 256, (7, 3072), dtype=np.uint8)
TEST_LABELS = [3, 8, 8, 0, 9, 1, 6]


class RunsCode:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name: str, content: object) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    other = {"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [0, 1]}
    train = [[name, write(name, other)] for name, _ in CIFAR10.train_list]
    test = [["test_batch", write("test_batch", {"data": TEST_PIXELS, "labels": TEST_LABELS})]]
    meta = {**CIFAR10.meta, "md5": write("batches.meta", {"label_names": NAMES})}
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return tmp_path


def test_test_split_is_read_and_normalised(cifar: Path):
    data = open_cifar10(cifar, SPEC)
    pixels = TEST_PIXELS.reshape(7, 3, 32, 32).astype(np.float32) / 255
    mean, std = (np.array(v, dtype=np.float32).reshape(3, 1, 1) for v in (SPEC.mean, SPEC.std))
    images, labels = next(data.batches(100))
    np.testing.assert_allclose(images.numpy(), (pixels - mean) / std, rtol=1e-6, atol=1e-6)
    assert labels.tolist() == TEST_LABELS
    assert (data.num_images, data.num_classes, data.class_names) == (7, 10, NAMES)


def test_first_so_many(cifar: Path):
    assert open_cifar10(cifar, SPEC, 3).num_images == 3


def test_missing_files_are_named(tmp_path: Path):
    with pytest.raises(InputError) as raised:
        open_cifar10(tmp_path, SPEC)
    assert f"missing or damaged in {tmp_path}" in str(raised.value)
    assert "it must hold cifar-10-batches-py/ with data_batch_1, " in str(raised.value)
    assert "test_batch is missing" in str(raised.value)


@pytest.mark.parametrize("name", ["test_batch", "data_batch_3", "batches.meta"])
def test_damaged_file_is_named(cifar: Path, name: str):
    file = cifar / "cifar-10-batches-py" / name
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match=f"; {name} differs from the published file"):
        open_cifar10(cifar, SPEC)


def test_file_that_is_not_the_published_one_is_never_unpickled(cifar: Path):
    touched = cifar / "touched"
    evil = pickle.dumps(RunsCode(touched))
    (cifar / "cifar-10-batches-py" / "test_batch").write_bytes(evil)
    with pytest.raises(InputError):
        open_cifar10(cifar, SPEC)
    assert not touched.exists()


@pytest.mark.parametrize(
    "spec", [InputSpec(size=224), InputSpec(num_channels=1, size=32, mean=(0.5,), std=(0.5,))], ids=["size", "gray"]
)
def test_other_input_is_refused(cifar: Path, spec: InputSpec):
    with pytest.raises(InputError, match=r"CIFAR-10 holds images of \[3, 32, 32\]"):
        open_cifar10(cifar, spec)
