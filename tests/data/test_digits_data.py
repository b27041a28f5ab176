"""The bundled digits against scikit-learn's own arrays."""

import sys

import numpy as np
import pytest
import torch

from genie_cli.config import InputSpec
from genie_cli.data.digits import open_digits, split
from genie_cli.errors import InputError, UsageError

SPEC = InputSpec(num_channels=1, size=16, mean=(0.3,), std=(0.25,))


def enlarge_rows(values: np.ndarray) -> np.ndarray:
    """Bilinear by two along the last axis: each new pixel lies a quarter off its source, borders repeat."""
    padded = np.concatenate([values[..., :1], values, values[..., -1:]], axis=-1)
    left = 0.25 * padded[..., :-2] + 0.75 * padded[..., 1:-1]
    right = 0.75 * padded[..., 1:-1] + 0.25 * padded[..., 2:]
    return np.stack([left, right], axis=-1).reshape(*values.shape[:-1], -1)


def enlarge(values: np.ndarray) -> np.ndarray:
    return enlarge_rows(enlarge_rows(values).swapaxes(-1, -2)).swapaxes(-1, -2)


@pytest.mark.parametrize("train", [True, False], ids=["train", "test"])
def test_split_is_scikit_learns_enlarged(train: bool):
    from sklearn.datasets import load_digits

    bundled = load_digits()
    of_each_class = [np.flatnonzero(bundled.target == digit) for digit in range(10)]
    test = np.concatenate([places[np.isin(np.arange(len(places)) % 10, [2, 5, 8])] for places in of_each_class])
    chosen = np.setdiff1d(np.arange(1797), test) if train else np.sort(test)
    images, labels = split(train)
    assert images.dtype == torch.uint8
    assert labels.tolist() == bundled.target[chosen].tolist()
    # A value halfway between two pixels may be rounded either way.
    difference = images.squeeze(1).numpy() - enlarge(bundled.images[chosen]) * (255 / 16)
    assert np.abs(difference).max() <= 0.5 + 1e-4


def test_split_is_fixed_stratified_and_apart():
    (train, train_labels), (test, test_labels) = split(train=True), split(train=False)
    assert train.shape == (1260, 1, 16, 16)
    assert test.shape == (537, 1, 16, 16)
    assert len(train_labels) == 1260
    assert torch.equal(split(train=False)[0], test)
    share = test_labels.bincount() / (test_labels.bincount() + train_labels.bincount())
    assert share.min() > 0.29
    assert share.max() < 0.31
    seen = {image.numpy().tobytes() for image in train}
    assert sum(image.numpy().tobytes() in seen for image in test) == 0


def test_open_gives_the_test_split_normalised():
    data = open_digits(SPEC)
    images, labels = next(data.batches(10))
    expected = (split(train=False)[0][:10].numpy().astype(np.float32) / 255 - np.float32(0.3)) / np.float32(0.25)
    np.testing.assert_allclose(images.numpy(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(labels, split(train=False)[1][:10])
    assert (data.num_images, data.num_classes) == (537, 10)
    assert data.class_names == list("0123456789")


@pytest.mark.parametrize(("asked", "got"), [(1, 1), (20, 20), (537, 537), (10_000, 537)])
def test_first_so_many(asked: int, got: int):
    data = open_digits(SPEC, asked)
    assert data.num_images == got
    assert torch.equal(data.labels, split(train=False)[1][:got])


@pytest.mark.parametrize("spec", [InputSpec(size=16), InputSpec(num_channels=1, size=8, mean=(0.3,), std=(0.2,))])
def test_other_input_is_refused(spec: InputSpec):
    with pytest.raises(InputError, match=r"digits holds images of \[1, 16, 16\]"):
        open_digits(spec)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match=r"'digits' needs the package scikit-learn, .* 'genie-cli\[digits\]'"):
        open_digits(SPEC)
