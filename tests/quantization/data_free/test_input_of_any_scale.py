"""DFQ on inputs of any scale: the range and the mean of a network's input are those of the pixel prior."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from genie_cli.config import InputSpec, QuantizeConfig, build
from genie_cli.data.pixel_prior import PixelPrior
from genie_cli.models.graph.folding import fold_batch_norms
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.graph.tensors import get_tensor
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.quantization.data_free.batch_norm_ranges import activation_statistics, batch_norm_outputs
from genie_cli.quantization.data_free.quantize import quantize_without_images
from genie_cli.quantization.plan import make_plan
from genie_cli.quantization.presets import preset_options
from genie_cli.quantization.result import QuantizedNetwork
from genie_cli.runtime.progress import silent

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SCALES = {"imagenet": (MEAN, STD), "0..1": (np.zeros(3), np.ones(3)), "0..255": (np.zeros(3), np.ones(3) / 255)}


class Small(nn.Module):
    """A network whose last layer reads the image too, so that the image is quantized."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(11, 4, 1)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([x, self.norm(self.conv(x)).relu().clamp(max=0.1)], 1)).mean((2, 3))


def teacher_of(scale: str) -> Teacher:
    """The same function of pixels for inputs of three scales, the normalisation merged into the first convolution."""
    mean, std = SCALES[scale]
    network = Small().requires_grad_(False)
    weight = network.conv.weight.clone()
    factor, offset = (torch.tensor(values, dtype=torch.float32) for values in (std / STD, (mean - MEAN) / STD))
    network.conv.weight.copy_(weight * factor.view(1, -1, 1, 1))
    network.conv.bias += (weight.sum((2, 3)) * offset).sum(1)
    spec = InputSpec(num_channels=3, size=8, mean=tuple(mean), std=tuple(std))
    return make_teacher(scale, network, spec)


def quantize(teacher: Teacher) -> QuantizedNetwork:
    config = build(QuantizeConfig, preset_options("dfq"), {"weight_bits": 4, "activation_bits": 8, "equalize": False})
    return quantize_without_images(teacher, make_plan(teacher, config, None), silent)


def bias_shift(teacher: Teacher, network: QuantizedNetwork) -> np.ndarray:
    """The number that bias correction took off each bias of the first layer, over the error of the weight per input."""
    layers = [weight_layers(graph)[0] for graph in (fold_batch_norms(teacher.graph).graph, network.plan.folded.graph)]
    plain, corrected = (
        get_tensor(graph, str(layer.bias_key)).double().numpy()
        for graph, layer in zip((fold_batch_norms(teacher.graph).graph, network.plan.folded.graph), layers, strict=True)
    )
    return plain - corrected


@pytest.mark.parametrize("scale", SCALES)
def test_the_inputs_range_is_six_deviations_of_the_prior(scale: str) -> None:
    network = quantize(teacher_of(scale))
    own_mean, own_std = SCALES[scale]
    mean, std = (MEAN - own_mean) / own_std, STD / own_std
    low, high = (mean - 6 * std).min(), (mean + 6 * std).max()
    assert float(network.activations["head.input"].step_size) == pytest.approx(max(-low, high) / 127, rel=1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_the_bias_is_corrected_by_the_priors_mean(scale: str) -> None:
    teacher = teacher_of(scale)
    network = quantize(teacher)
    graph = network.plan.folded.graph
    weight = get_tensor(graph, weight_layers(graph)[0].weight_key).double().numpy()
    error = network.weights["conv"]().double().numpy() - weight
    own_mean, own_std = SCALES[scale]
    wanted = error.sum((2, 3)) @ ((MEAN - own_mean) / own_std)
    np.testing.assert_allclose(bias_shift(teacher, network), wanted, rtol=1e-3, atol=1e-5)
    assert scale == "imagenet" or np.abs(wanted).max() > 1e-3


def test_with_imagenets_normalisation_the_input_is_exactly_standard() -> None:
    teacher = teacher_of("imagenet")
    folded = fold_batch_norms(teacher.graph).graph
    found = activation_statistics(folded, batch_norm_outputs(teacher.graph), PixelPrior.of_input(teacher.input))
    first = weight_layers(folded)[0].node.args[0]
    assert isinstance(first, fx.Node)
    channels = found[first.name].channels
    zeros = torch.zeros(3, dtype=torch.float64)
    assert torch.equal(channels.mean, zeros) and torch.equal(channels.var, zeros + 1)
    assert channels.range == (-6, 6)
