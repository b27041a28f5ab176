"""The shipped teacher: its file, its accuracy, and that it is a fit subject for quantization."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import genie_cli.models.digits
from genie_cli.data.digits import SIZE, open_digits, split
from genie_cli.data.normalize import normalize_pixels
from genie_cli.models.digits import INPUT_SPEC, DigitsResNet, digits_resnet

WEIGHTS = Path(genie_cli.models.digits.__file__).parent / "assets" / "digits_resnet.safetensors"


@pytest.fixture(scope="module")
def teacher() -> DigitsResNet:
    network = digits_resnet()
    network.load_state_dict(load_file(WEIGHTS), strict=True)
    return network.eval()


@torch.no_grad()
def top1(network: nn.Module) -> float:
    data = open_digits(INPUT_SPEC)
    correct = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in data.batches(256))
    return 100 * correct / data.num_images


@torch.no_grad()
def quantize_to_nearest(network: DigitsResNet, num_bits: int) -> nn.Module:
    """Min-max asymmetric per-channel weights, batch norms folded, first and last layer 8 bits."""
    network = copy.deepcopy(network)
    modules = dict(network.named_modules())
    for name, module in modules.items():
        if not isinstance(module, nn.Conv2d):
            continue
        norm = modules[name.replace("conv", "bn") if "conv" in name else name.removesuffix("0") + "1"]
        gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).view(-1, 1, 1, 1)
        weight = module.weight * gain
        low, high = weight.amin((1, 2, 3), keepdim=True).clamp(max=0), weight.amax((1, 2, 3), keepdim=True).clamp(min=0)
        num_steps = 2 ** (8 if name == "conv1" else num_bits) - 1
        step = (high - low) / num_steps
        zero_point = (-low / step).round()
        codes = ((weight / step).round() + zero_point).clamp(0, num_steps)
        module.weight.copy_((codes - zero_point) * step / gain)
    return network


def test_file_is_small():
    assert WEIGHTS.stat().st_size < 1_000_000


def test_input_is_that_of_the_training_split():
    pixels = split(train=True)[0].double() / 255
    assert INPUT_SPEC.size == SIZE
    assert INPUT_SPEC.mean == pytest.approx((pixels.mean().item(),), abs=1e-4)
    assert INPUT_SPEC.std == pytest.approx((pixels.std().item(),), abs=1e-4)


def test_float_accuracy(teacher: DigitsResNet):
    assert top1(teacher) >= 98


def test_batch_norm_statistics_are_those_of_the_training_split(teacher: DigitsResNet):
    estimated = copy.deepcopy(teacher).train()
    norms = [module for module in estimated.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        estimated(normalize_pixels(split(train=True)[0], INPUT_SPEC))
    shipped = [module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)]
    for mine, theirs in zip(shipped, norms, strict=True):
        torch.testing.assert_close(mine.running_mean, theirs.running_mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(mine.running_var, theirs.running_var, rtol=1e-3, atol=1e-3)
        assert mine.running_var.min() > 0.01


def test_two_bits_need_more_than_rounding_to_nearest(teacher: DigitsResNet):
    full = top1(teacher)
    assert top1(quantize_to_nearest(teacher, 8)) > full - 1
    assert top1(quantize_to_nearest(teacher, 4)) > full - 3
    assert top1(quantize_to_nearest(teacher, 2)) < full - 15
