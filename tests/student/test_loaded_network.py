"""A loaded network is moved, cast, copied and pickled as any module, and keeps its weights in evaluation mode."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import genie_cli
from genie_cli.config import QuantizeConfig
from genie_cli.models.teacher import Teacher
from genie_cli.quantization.presets import preset_options
from genie_cli.student.formats import weight_format
from genie_cli.student.modules import IntegerWeight
from tests.support import stages
from tests.support.networks import digit_images
from tests.support.students import save_student


@pytest.fixture(scope="module")
def folder(digits_teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = QuantizeConfig(preset="minmax", **preset_options("minmax"))
    path = tmp_path_factory.mktemp("loaded") / "quantized"
    save_student(stages.quantize(digits_teacher, digit_images(16), config), digits_teacher, path)
    return path


@pytest.fixture
def network(folder: Path) -> nn.Module:
    return genie_cli.load("digits_resnet", folder)


def weights(network: nn.Module) -> list[IntegerWeight]:
    found = [module for module in network.modules() if isinstance(module, IntegerWeight)]
    assert len(found) > 5
    return found


def through_torch_save(network: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "way",
    [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network)), through_torch_save],  # noqa: S301
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_a_copy_computes_the_same_and_holds_no_kept_weight(way: Callable[[nn.Module], nn.Module], network: nn.Module):
    images = digit_images(8)
    expected = network(images)
    assert all(weight._kept is not None for weight in weights(network))
    other = way(network)
    assert all(weight._kept is None for weight in weights(other))
    assert torch.equal(other(images), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_cast_network_computes_in_its_dtype_and_comes_back(dtype: torch.dtype, network: nn.Module) -> None:
    images = digit_images(16)
    expected = network(images)
    cast = copy.deepcopy(network).to(dtype)
    found = cast(images.to(dtype))
    assert found.dtype == dtype
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.8
    for own, other in zip(weights(cast), weights(network), strict=True):
        assert own().dtype == dtype
        assert torch.equal(own(), other().to(dtype))
    scales = {name: value.clone() for name, value in network.state_dict().items() if "quantizers" in name}
    back = cast.float().state_dict()
    assert scales.keys() <= back.keys()
    assert [name for name, value in scales.items() if not torch.equal(back[name], value)] == []


def test_kept_weights_are_those_of_every_call(folder: Path, network: nn.Module) -> None:
    sparing, images = genie_cli.load("digits_resnet", folder, keep_weights=False), digit_images(8)
    assert torch.equal(network(images), network(images))
    assert torch.equal(sparing(images), network(images))
    assert all(weight._kept is None for weight in weights(sparing))
    first = weights(network)[0]
    assert first() is first()
    assert weights(sparing)[0]() is not weights(sparing)[0]()


@pytest.mark.parametrize(
    "change",
    [lambda network: network.train(), lambda network: network.to("cpu"), lambda network: network.bfloat16()],
    ids=["train", "to", "bfloat16"],
)
def test_what_is_kept_is_dropped(change: Callable[[nn.Module], object], network: nn.Module) -> None:
    network(digit_images(2))
    change(network)
    assert all(weight._kept is None for weight in weights(network))


def test_other_codes_are_read(network: nn.Module) -> None:
    first = weights(network)[0]
    before = first().clone()
    state = {name: value.clone() for name, value in first.state_dict().items()}
    state["scale"] *= 2
    first.load_state_dict(state)
    assert torch.equal(first(), before * 2)


def test_a_weight_kept_in_inference_mode_has_a_use_with_gradients(network: nn.Module) -> None:
    images = digit_images(2)
    with torch.inference_mode():
        network(images)
    images.requires_grad_(True)
    network(images).sum().backward()
    assert images.grad is not None


def test_quantizers_of_a_quantization_keep_nothing() -> None:
    weight = IntegerWeight.nearest(torch.ones(2, 3), torch.ones(2, 1), torch.zeros(2, 1), weight_format(4)).eval()
    assert weight() is not weight()
