"""The generator: any input size, normalised output, the published layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from genie_cli.config import InputSpec
from genie_cli.synthesis.generator import Generator


def spec(size: int, num_channels: int = 3) -> InputSpec:
    return InputSpec(num_channels=num_channels, size=size, mean=(0.5,) * num_channels, std=(0.2,) * num_channels)


def make(size: int, num_channels: int = 3, latent_dim: int = 8) -> Generator:
    torch.manual_seed(0)
    return Generator(latent_dim, spec(size, num_channels)).train()


@torch.no_grad()
@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("size", [*range(8, 41), 224, 299])
def test_images_have_the_size_asked_for_and_are_normalised(size: int, num_channels: int):
    images = make(size, num_channels)(torch.randn(2, 8))
    assert images.shape == (2, num_channels, size, size) and images.dtype == torch.float32
    std, mean = torch.std_mean(images, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(num_channels), rtol=0, atol=1e-4)
    torch.testing.assert_close(std, torch.ones(num_channels), rtol=0, atol=2e-2)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(24, 94), (49, 10), (360, 480), (1, 7), (94, 24)])
def test_oblong_images_are_the_middle_of_a_map_of_multiples_of_four(height: int, width: int):
    torch.manual_seed(0)
    generator = Generator(8, InputSpec(size=(height, width))).train()
    assert generator.base == (-(-height // 4), -(-width // 4))
    images = generator(torch.randn(2, 8))
    assert images.shape == (2, 3, height, width)
    latents = torch.randn(2, 8)
    whole = Generator(8, InputSpec(size=(-(-height // 4) * 4, -(-width // 4) * 4))).train()
    whole.load_state_dict(generator.state_dict())
    top, left = (whole.size[0] - height) // 2, (whole.size[1] - width) // 2
    cut = whole(latents)[:, :, top : top + height, left : left + width]
    own = generator(latents)
    # both are standardized, each over its own pixels
    shared = torch.corrcoef(torch.stack([cut[:, 0].flatten(), own[:, 0].flatten()]))[0, 1]
    assert shared > 0.999 or height * width < 8


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "first"),
    [(32, (8, 8)), (224, (56, 56)), (256, (64, 64)), (260, (33, 33)), ((360, 480), (45, 60)), ((1024, 2048), (32, 64))],
)
def test_the_first_layer_of_large_images_makes_a_smaller_map(size: int | tuple[int, int], first: tuple[int, int]):
    with torch.device("meta"):
        generator = Generator(256, InputSpec(size=size))
    assert generator.first == first
    assert generator.linear.weight.shape == (128 * first[0] * first[1], 256)
    assert generator.linear.weight.numel() <= 2**27


@torch.no_grad()
def test_without_tanh_the_images_are_the_standardized_maps_of_the_last_convolution():
    latents, bounded = torch.randn(2, 8), make(16)
    free = Generator(8, spec(16), tanh=False).train()
    free.load_state_dict(bounded.state_dict())
    # the last convolution runs fused with its upsampling, so it is written out here
    x = bounded.bn1(bounded.linear(latents).view(2, 128, 4, 4))
    x = F.leaky_relu(bounded.bn2(bounded.conv1(F.interpolate(x, scale_factor=2))), 0.2)
    maps = bounded.conv2(F.interpolate(x, scale_factor=2))
    for generator, value in ((free, maps), (bounded, maps.tanh())):
        std, mean = torch.std_mean(value, (0, 2, 3), correction=0, keepdim=True)
        torch.testing.assert_close(generator(latents), (value - mean) / std, rtol=0, atol=1e-3)


def test_parameters_are_those_of_the_authors():
    parameters = {name: tuple(p.shape) for name, p in Generator(256, spec(32)).named_parameters()}
    assert parameters == {
        "linear.weight": (128 * 8 * 8, 256),
        "linear.bias": (128 * 8 * 8,),
        "bn1.weight": (128,),
        "bn1.bias": (128,),
        "conv1.weight": (64, 128, 3, 3),
        "conv1.bias": (64,),
        "bn2.weight": (64,),
        "bn2.bias": (64,),
        "conv2.weight": (3, 64, 3, 3),
        "conv2.bias": (3,),
    }


def reference(state: dict[str, Tensor], latents: Tensor, size: int) -> Tensor:
    """Method section 1, in float64: linear, BN, up, conv, BN, LeakyReLU 0.2, up, conv, tanh, BN."""

    def norm(x: Tensor, name: str | None) -> Tensor:
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        x = (x - mean) / (var + 1e-5).sqrt()
        return x if name is None else x * state[f"{name}.weight"].view(-1, 1, 1) + state[f"{name}.bias"].view(-1, 1, 1)

    def up(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    x = (latents @ state["linear.weight"].T + state["linear.bias"]).view(len(latents), 128, -(-size // 4), -1)
    x = F.conv2d(up(norm(x, "bn1")), state["conv1.weight"], state["conv1.bias"], padding=1)
    x = norm(x, "bn2")
    x = up(torch.where(x >= 0, x, 0.2 * x))
    margin = (x.shape[2] - size) // 2
    x = F.conv2d(x, state["conv2.weight"], state["conv2.bias"], padding=1)
    return norm(x[:, :, margin : margin + size, margin : margin + size].tanh(), None)


@pytest.mark.parametrize("size", [8, 30, 32])
def test_images_and_gradients_are_those_of_the_plain_formula(size: int):
    generator = make(size)
    state = {name: p.detach().double().requires_grad_() for name, p in generator.named_parameters()}
    latents = torch.randn(5, 8, requires_grad=True)
    own_latents = latents.detach().double().requires_grad_()
    images, wanted = generator(latents), reference(state, own_latents, size)
    torch.testing.assert_close(images.double(), wanted, rtol=0, atol=1e-4)
    weight = torch.randn_like(wanted)
    (images * weight).sum().backward()
    (wanted * weight).sum().backward()
    assert latents.grad is not None and own_latents.grad is not None
    scale = float(own_latents.grad.abs().max())
    torch.testing.assert_close(latents.grad.double(), own_latents.grad, rtol=0, atol=1e-3 * scale)
    for name, parameter in generator.named_parameters():
        scale = float(state[name].grad.abs().max())
        if scale > 1e-6:  # a bias in front of a batch norm has no gradient but rounding
            torch.testing.assert_close(parameter.grad.double(), state[name].grad, rtol=0, atol=1e-3 * scale)


@torch.no_grad()
def test_under_autocast_images_stay_float32_and_normalised():
    with torch.autocast("cpu", torch.bfloat16):
        images = make(16)(torch.randn(8, 8))
    assert images.dtype == torch.float32
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
