"""Batches, normalisation and the checks against a network."""

import numpy as np
import pytest
import torch

from genie_cli.config import InputSpec
from genie_cli.data.labeled import TensorImages, check_classes, check_fits
from genie_cli.data.normalize import normalize_pixels
from genie_cli.errors import InputError

SPEC = InputSpec(num_channels=3, size=5, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def random_images(num_images: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_images, 3, 5, 5), generator=generator).to(torch.uint8)


def test_normalization_is_numpys():
    images = random_images(7)
    mean, std = (np.array(values, dtype=np.float32).reshape(3, 1, 1) for values in (SPEC.mean, SPEC.std))
    expected = (images.numpy().astype(np.float32) / np.float32(255) - mean) / std
    actual = normalize_pixels(images, SPEC)
    assert actual.dtype == torch.float32
    np.testing.assert_array_equal(actual.numpy(), expected)


def test_normalization_leaves_the_pixels_alone():
    images = random_images(2)
    before = images.clone()
    normalize_pixels(images, SPEC)
    assert torch.equal(images, before)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batches_hold_every_image_once_in_order(batch_size: int):
    images, labels = random_images(7), torch.arange(7)
    data = TensorImages(images, labels, SPEC)
    batches = list(data.batches(batch_size))
    assert data.num_images == 7
    assert [len(x) for x, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert torch.equal(torch.cat([x for x, _ in batches]), normalize_pixels(images, SPEC))
    assert torch.equal(torch.cat([y for _, y in batches]), labels)
    assert all(y.dtype == torch.int64 for _, y in batches)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_shares_hold_the_batches_of_all(batch_size: int, size: int):
    data = TensorImages(random_images(7), torch.arange(7), SPEC)
    num_batches = data.num_batches(batch_size)
    whole = list(data.batches(batch_size))
    assert len(whole) == num_batches
    for rank in range(size):
        share = range(rank, num_batches, size)
        for index, (images, labels) in zip(share, data.batches(batch_size, share), strict=True):
            assert torch.equal(images, whole[index][0])
            assert torch.equal(labels, whole[index][1])


def test_batches_can_be_read_twice():
    data = TensorImages(random_images(4), torch.arange(4), SPEC)
    assert torch.equal(next(data.batches(4))[0], next(data.batches(4))[0])


def test_shape_that_does_not_fit_is_named_with_the_one_that_would():
    with pytest.raises(InputError, match=r"digits holds images of \[1, 16, 16\].*network takes \[3, 5, 5\]"):
        check_fits("digits", (1, 16, 16), SPEC)
    check_fits("digits", (3, 5, 5), SPEC)


def test_other_number_of_classes_is_refused():
    data = TensorImages(random_images(2), torch.tensor([0, 1]), SPEC, num_classes=10)
    with pytest.raises(InputError, match="10 classes and the network has 1000"):
        check_classes(data, 1000)
    check_classes(data, 10)


def test_label_beyond_the_last_class_is_refused():
    data = TensorImages(random_images(3), torch.tensor([0, 11, 2]), SPEC)
    with pytest.raises(InputError, match="label 11 and the network's 10 classes end at label 9"):
        check_classes(data, 10)
    check_classes(data, 12)
