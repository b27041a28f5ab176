"""Images by a user's factory: what it may give, in which order it is read, and what is refused."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genie_cli.config import InputSpec
from genie_cli.data.collate import collate_targets, first_targets
from genie_cli.data.factory import FactorySamples, open_factory
from genie_cli.errors import InputError, UsageError

SPEC = InputSpec(num_channels=2, size=3, mean=(0.25, 0.5), std=(0.5, 2.0))
HEAD = """
import numpy as np
import torch

READ = []


def image(i):
    READ.append(i)
    return torch.full((2, 3, 3), i * 20, dtype=torch.uint8)


class Sequence:
    def __init__(self, n=7):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return image(i), i
"""

Opener = Callable[..., FactorySamples]


@pytest.fixture
def opened(tmp_path: Path) -> Opener:
    """Opens the factory `make`, of the given body."""

    def open_(body: str, num_images: int | None = None) -> FactorySamples:
        path = tmp_path / "data.py"
        path.write_text(HEAD + "\n\n" + textwrap.dedent(body))
        return open_factory(f"{path}:make", SPEC, num_images)

    return open_


def read(samples: FactorySamples) -> list[int]:
    """The images that were read, in their order."""
    found: list[int] = samples._code.function.__globals__["READ"]
    return found


def values(images: Tensor) -> list[int]:
    """The numbers of images that `image` made, after normalisation."""
    return [round((float(each[0, 0, 0]) * 0.5 + 0.25) * 255 / 20) for each in images]


GENERATOR = """
def make():
    for i in range(7):
        yield image(i), i
"""
SEQUENCE = "def make():\n    return Sequence()\n"
LOADER = "def make():\n    return torch.utils.data.DataLoader(Sequence(), batch_size=3)\n"
LIST = "def make():\n    return [(image(i), i) for i in range(7)]\n"


@pytest.mark.parametrize("body", [GENERATOR, SEQUENCE, LIST], ids=["generator", "sequence", "list"])
@pytest.mark.parametrize("num_images", [None, 5])
def test_images_one_by_one(opened: Opener, body: str, num_images: int | None) -> None:
    samples = opened(body, num_images)
    assert (samples.task, samples.has_targets, len(samples.code_sha256 or "")) == ("classification", True, 64)
    found = list(samples.batches(3))
    count = num_images or 7
    assert [len(images) for images, _ in found] == ([3, 3, 1] if num_images is None else [3, 2])
    assert torch.cat([targets for _, targets in found]).tolist() == list(range(count))
    assert values(torch.cat([images for images, _ in found])) == list(range(count))
    expected = (torch.full((2, 3, 3), 20 / 255) - torch.tensor([0.25, 0.5]).view(-1, 1, 1)) / torch.tensor(
        [0.5, 2.0]
    ).view(-1, 1, 1)
    torch.testing.assert_close(found[0][0][1], expected)


def test_batches_of_the_users_own_keep_their_size(opened: Opener) -> None:
    samples = opened(LOADER)
    assert (samples.num_images, samples.task) == (None, "classification")
    assert [targets.tolist() for _, targets in samples.batches(128)] == [[0, 1, 2], [3, 4, 5], [6]]
    cut = opened(LOADER, 4)
    assert [(len(images), targets.tolist()) for images, targets in cut.batches(128)] == [(3, [0, 1, 2]), (1, [3])]


@pytest.mark.parametrize(("body", "number"), [(GENERATOR, None), (SEQUENCE, 7), (LIST, 7)])
def test_the_number_of_images(opened: Opener, body: str, number: int | None) -> None:
    assert opened(body).num_images == number
    assert opened(body).num_batches(2) == (None if number is None else 4)


@pytest.mark.parametrize("body", [GENERATOR, SEQUENCE, LOADER], ids=["generator", "sequence", "loader"])
def test_images_can_be_gone_through_again(opened: Opener, body: str) -> None:
    samples = opened(body)
    first, second = (torch.cat([images for images, _ in samples.batches(3)]) for _ in range(2))
    assert torch.equal(first, second) and len(first) == 7


def test_what_is_not_needed_is_not_read(opened: Opener) -> None:
    sequence = opened(SEQUENCE)
    list(sequence.batches(2, range(1, 4, 2)))  # batches 1 and 3: the first image was looked at
    assert read(sequence) == [0, 2, 3, 6]
    endless = opened("def make():\n    i = 0\n    while True:\n        yield image(i % 10), i\n        i += 1\n", 4)
    assert torch.cat([targets for _, targets in endless.batches(3)]).tolist() == [0, 1, 2, 3]
    assert len(read(endless)) <= 6  # whole batches are taken


def test_a_pass_that_was_left_begins_anew(opened: Opener) -> None:
    samples = opened(GENERATOR)
    next(samples.batches(2))
    assert torch.cat([targets for _, targets in samples.batches(3)]).tolist() == list(range(7))


# --- calibration


@pytest.mark.parametrize("body", [GENERATOR, SEQUENCE, LOADER], ids=["generator", "sequence", "loader"])
def test_calibration_takes_the_first_images(opened: Opener, body: str) -> None:
    samples = opened(body)
    pixels = samples.calibration_pixels(4, seed=9)
    assert pixels.dtype == torch.uint8 and pixels[:, 0, 0, 0].tolist() == [0, 20, 40, 60]
    assert len(samples.calibration_pixels(None, seed=9)) == 7


def test_floats_are_rounded_to_pixels(opened: Opener) -> None:
    samples = opened("def make():\n    yield torch.tensor([0.0, 1.0, 0.5004]).expand(2, 3, 3), None\n")
    assert samples.calibration_pixels(1, 0)[0, 0, 0].tolist() == [0, 255, 128]
    ((images, targets),) = samples.batches(2)
    assert targets is None
    torch.testing.assert_close(images[0, 0, 0], (torch.tensor([0.0, 1.0, 0.5004]) - 0.25) / 0.5)


def test_more_images_than_there_are(opened: Opener) -> None:
    with pytest.raises(UsageError, match=r"--num-images 9 is more than the 7 images of '.*data\.py:make'"):
        opened(GENERATOR).calibration_pixels(9, 0)
    with pytest.raises(UsageError, match="--num-images 9 is more than the 7"):
        list(opened(GENERATOR, 9).batches(4))


# --- targets


@pytest.mark.parametrize(
    ("target", "task"),
    [
        ("3", "classification"),
        ("np.int64(3)", "classification"),
        ("torch.tensor(3)", "classification"),
        ("torch.zeros(5, 5, dtype=torch.uint8)", "segmentation"),
        ("np.zeros((5, 5), np.int64)", "segmentation"),
        ("{'boxes': torch.zeros(0, 4), 'labels': torch.zeros(0)}", "detection"),
        ("0.5", None),
        ("torch.zeros(4)", None),
        ("'cat'", None),
    ],
)
def test_the_task_follows_from_the_first_target(opened: Opener, target: str, task: str | None) -> None:
    samples = opened(f"def make():\n    yield image(0), {target}\n")
    assert (samples.task, samples.has_targets) == (task, True)


@pytest.mark.parametrize("item", ["image(0)", "(image(0),)", "(image(0), None)", "[image(0), None]"])
def test_images_alone(opened: Opener, item: str) -> None:
    samples = opened(f"def make():\n    yield {item}\n")
    assert (samples.task, samples.has_targets) == (None, False)
    assert [targets for _, targets in samples.batches(1)] == [None]


def test_arrays_are_images_too(opened: Opener) -> None:
    samples = opened("def make():\n    yield np.full((3, 3, 2), 20, np.uint8).transpose(2, 0, 1), 1\n")
    assert values(next(samples.batches(1))[0]) == [1]


BOXES: list[Any] = [{"boxes": torch.zeros(2, 4)}, {"boxes": torch.zeros(1, 4)}]


@pytest.mark.parametrize(
    ("targets", "collated"),
    [
        ([1, np.int32(2)], torch.tensor([1, 2])),
        ([0.5, 1], torch.tensor([0.5, 1.0])),
        ([torch.zeros(2), torch.ones(2)], torch.tensor([[0.0, 0], [1, 1]])),
        ([np.zeros(2), np.ones(2)], torch.tensor([[0.0, 0], [1, 1]], dtype=torch.float64)),
        ([None, None], None),
        (["a", "b"], ["a", "b"]),
        (BOXES, BOXES),
    ],
    ids=["integers", "floats", "tensors", "arrays", "none", "texts", "dicts"],
)
def test_targets_of_a_batch(targets: list[Any], collated: Any) -> None:
    found = collate_targets(targets)
    if isinstance(collated, Tensor):
        assert found.dtype == collated.dtype and torch.equal(found, collated)
    else:
        assert found == collated


def test_tensors_of_several_shapes_stay_a_list() -> None:
    found = collate_targets([torch.zeros(2), torch.zeros(3)])
    assert [each.shape for each in found] == [(2,), (3,)]


def test_the_first_targets_of_a_batch() -> None:
    batch = {"boxes": [1, 2, 3], "labels": torch.tensor([4, 5, 6]), "names": "abc", "other": [1]}
    first = first_targets(batch, 2, 3)
    assert (first["boxes"], first["labels"].tolist(), first["names"], first["other"]) == ([1, 2], [4, 5], "abc", [1])


# --- what is refused


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("def make():\n    return 5\n", "must give an iterable of (image, target), it gave int"),
        ("def make():\n    return {'images': 1}\n", "must give an iterable of (image, target), it gave dict"),
        ("def make():\n    return []\n", "gives no images"),
        ("def make():\n    yield 'a', 1\n", "Item 1 of data"),
        ("def make():\n    yield 'a', 1\n", "it is str"),
        ("def make():\n    yield image(0), 1, 2\n", "it is tuple"),
        ("def make():\n    yield torch.zeros(3, 3, 2), 1\n", "an image of [3, 3, 2], and the network takes [2, 3, 3]"),
        ("def make():\n    yield torch.zeros(1, 1, 2, 3, 3), 1\n", "an image of [1, 1, 2, 3, 3]"),
        ("def make():\n    yield torch.full((2, 3, 3), -2.5), 1\n", "values from -2.5 to -2.5: pixels are uint8"),
        ("def make():\n    yield torch.full((2, 3, 3), float('nan')), 1\n", "values from nan to nan"),
        ("def make():\n    yield torch.zeros(2, 3, 3).long(), 1\n", "type torch.int64"),
        ("def make():\n    raise KeyError('path')\n", "failed in make(): KeyError: 'path' (data.py, line"),
        ("def make():\n    yield 1 / 0\n", "failed while it gave an image: ZeroDivisionError"),
    ],
)
def test_factories_that_are_refused(opened: Opener, body: str, problem: str) -> None:
    with pytest.raises(InputError) as raised:
        opened(body)
    assert problem in str(raised.value)


def test_a_later_item_is_named_by_its_number(opened: Opener) -> None:
    samples = opened("def make():\n    yield image(0), 0\n    yield torch.zeros(1), 1\n")
    with pytest.raises(InputError, match=r"Item 2 of data .* has an image of \[1\]"):
        list(samples.batches(1))
