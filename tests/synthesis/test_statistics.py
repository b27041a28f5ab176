"""The batch-norm statistics loss against NumPy, finite differences and PyTorch's own autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import genie_cli.models.digits
from genie_cli.config import InputSpec
from genie_cli.errors import InputError
from genie_cli.models.digits import digits_resnet
from genie_cli.models.graph.batch_norm import BatchNormSite
from genie_cli.models.graph.tensors import named_tensors
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.synthesis.image_statistics import image_statistics_loss
from genie_cli.synthesis.statistics import StatisticsSite, channel_statistics
from genie_cli.synthesis.statistics_graph import statistics_graph

CHANNELS = 5
SPEC = InputSpec(num_channels=1, size=8, mean=(0.0,), std=(1.0,))
WEIGHTS = Path(genie_cli.models.digits.__file__).parent / "assets" / "digits_resnet.safetensors"


def make_site(eps: float = 0.3) -> BatchNormSite:
    """A site of its own statistics; the large eps would show if the loss used it."""
    draws = torch.Generator().manual_seed(1)
    return BatchNormSite(
        name="bn",
        node=None,  # type: ignore[arg-type]
        mean=torch.randn(CHANNELS, generator=draws),
        var=torch.rand(CHANNELS, generator=draws) + 0.1,
        weight=torch.randn(CHANNELS, generator=draws),
        bias=torch.randn(CHANNELS, generator=draws),
        eps=eps,
    )


def draw(shape: tuple[int, ...], channels_last: bool = False, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 1.7 + 0.6
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def numpy_loss(x: np.ndarray, mean: Tensor, var: Tensor) -> float:
    """Method section 1: squared gaps of means and unbiased stds, each over the number of channels."""
    rows = np.moveaxis(x.astype(np.float64), 1, 0).reshape(x.shape[1], -1)
    mean_gap = rows.mean(1) - mean.double().numpy()
    std_gap = rows.std(1, ddof=1) - np.sqrt(var.double().numpy() + 1e-6)
    return float((mean_gap**2).sum() / len(rows) + (std_gap**2).sum() / len(rows))


def plain_site(x: Tensor, site: BatchNormSite) -> tuple[Tensor, Tensor]:
    """The same pair by PyTorch's own operations, for autograd, in the dtype of x."""
    std, mean = torch.std_mean(x, [0, *range(2, x.dim())])
    gap = (mean - site.mean.to(x)).square().sum() + (std - (site.var.to(x) + 1e-6).sqrt()).square().sum()
    parts = [v.to(x) for v in (site.mean, site.var, site.weight, site.bias)]
    return F.batch_norm(x, *parts, False, 0.0, site.eps), gap / x.shape[1]


SHAPES = {
    "4d": ((8, CHANNELS, 4, 6), False),
    "4d-channels-last": ((8, CHANNELS, 4, 6), True),
    "batch-of-2": ((2, CHANNELS, 3, 3), True),
    "two-values-a-channel": ((2, CHANNELS, 1, 1), False),
    "3d": ((4, CHANNELS, 7), False),
    "2d": ((9, CHANNELS), False),
    "2d-batch-of-2": ((2, CHANNELS), False),
}
shapes = pytest.mark.parametrize(("shape", "channels_last"), SHAPES.values(), ids=SHAPES.keys())


@shapes
def test_channel_statistics_are_those_of_numpy(shape: tuple[int, ...], channels_last: bool):
    x = draw(shape, channels_last)
    mean, var = channel_statistics(x)
    rows = np.moveaxis(x.double().numpy(), 1, 0).reshape(CHANNELS, -1)
    np.testing.assert_allclose(mean.numpy(), rows.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(var.numpy(), rows.var(1), rtol=1e-5, atol=1e-6)


def test_channel_statistics_survive_a_large_mean():
    x = draw((64, 3, 16, 16)) / 100 + 50
    _, var = channel_statistics(x)
    rows = np.moveaxis(x.double().numpy(), 1, 0).reshape(3, -1)
    np.testing.assert_allclose(var.numpy(), rows.var(1), rtol=1e-3)


@shapes
def test_loss_is_that_of_numpy(shape: tuple[int, ...], channels_last: bool):
    site, x = make_site(), draw(shape, channels_last)
    _, loss = StatisticsSite(site, needs_y=True)(x)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(numpy_loss(x.numpy(), site.mean, site.var), rel=1e-5)


def test_target_adds_1e_6_to_the_running_variance():
    site = make_site()
    site.var.fill_(1e-35)
    torch.testing.assert_close(StatisticsSite(site, True).target_std, torch.full((CHANNELS,), 1e-3))


@shapes
@pytest.mark.parametrize("needs_y", [True, False])
def test_value_and_gradient_are_those_of_autograd(shape: tuple[int, ...], channels_last: bool, needs_y: bool):
    site = make_site()
    x = draw(shape, channels_last).requires_grad_()
    weight = draw(shape, channels_last, seed=2)
    y, loss = StatisticsSite(site, needs_y)(x)
    wanted_x = x.detach().double().requires_grad_()
    wanted_y, wanted_loss = plain_site(wanted_x, site)
    if needs_y:
        torch.testing.assert_close(y.double(), wanted_y, rtol=1e-4, atol=1e-5)
        (3 * loss + (y * weight).sum()).backward()
        (3 * wanted_loss + (wanted_y * weight).sum()).backward()
    else:
        assert y.numel() == 0
        (3 * loss).backward()
        (3 * wanted_loss).backward()
    assert x.grad is not None and wanted_x.grad is not None
    torch.testing.assert_close(x.grad.double(), wanted_x.grad, rtol=1e-4, atol=2e-5)


@shapes
def test_gradient_is_the_finite_difference_of_the_numpy_loss(shape: tuple[int, ...], channels_last: bool):
    site = make_site()
    x = draw(shape, channels_last).requires_grad_()
    StatisticsSite(site, needs_y=False)(x)[1].backward()
    assert x.grad is not None
    start, step = x.detach().double().numpy(), 1e-5
    for seed in range(4):
        direction = draw(shape, seed=10 + seed).double().numpy()
        up, down = (numpy_loss(start + s * step * direction, site.mean, site.var) for s in (1, -1))
        slope = float((x.grad.double().numpy() * direction).sum())
        assert slope == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_channels_have_a_finite_and_small_gradient(value: float):
    site, shape = make_site(), (4, CHANNELS, 3, 3)
    x = draw(shape)
    x[:, 0] = value
    x.requires_grad_()
    y, loss = StatisticsSite(site, needs_y=True)(x)
    loss.backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and torch.isfinite(y).all()
    assert loss.item() == pytest.approx(numpy_loss(x.detach().numpy(), site.mean, site.var), rel=1e-4)
    # a std of 0 has no slope, the mean has its own: what is left is rounding
    count = 4 * 3 * 3
    wanted = 2 / CHANNELS * (value - float(site.mean[0])) / count
    np.testing.assert_allclose(x.grad[:, 0].numpy(), wanted, atol=2 / CHANNELS / count)


def test_dead_channels_are_finite():
    site = make_site(eps=1e-5)
    site.var[1], site.mean[1] = 1e-35, 0.0
    x = draw((4, CHANNELS, 3, 3))
    x[:, 1] = 0
    x.requires_grad_()
    y, loss = StatisticsSite(site, needs_y=True)(x)
    (loss + y.sum()).backward()
    assert torch.isfinite(loss) and torch.isfinite(y).all()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_one_value_a_channel_is_finite():
    x = draw((1, CHANNELS, 1, 1)).requires_grad_()
    _, loss = StatisticsSite(make_site(), needs_y=True)(x)
    loss.backward()
    assert torch.isfinite(loss)
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_bfloat16_input_has_float32_statistics():
    site = make_site()
    x = draw((16, CHANNELS, 8, 8), True).bfloat16().requires_grad_()
    y, loss = StatisticsSite(site, needs_y=True)(x)
    assert (y.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    assert loss.item() == pytest.approx(numpy_loss(x.detach().float().numpy(), site.mean, site.var), rel=1e-4)
    (1000 * loss + y.float().sum()).backward()
    wanted_x = x.detach().double().requires_grad_()
    wanted_y, wanted_loss = plain_site(wanted_x, site)
    (1000 * wanted_loss + wanted_y.sum()).backward()
    assert x.grad is not None and wanted_x.grad is not None and x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(x.grad.double(), wanted_x.grad, rtol=0.02, atol=0.02)


# whole networks


def hook_losses(network: nn.Module, images: Tensor) -> list[Tensor]:
    """The losses of all batch-norm modules in call order, by forward hooks and torch.std_mean."""
    losses: list[Tensor] = []

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        std, mean = torch.std_mean(inputs[0], [0, *range(2, inputs[0].dim())])
        gap = (mean - layer.running_mean).square().sum() + (std - (layer.running_var + 1e-6).sqrt()).square().sum()
        losses.append(gap / len(mean))

    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    handles = [norm.register_forward_pre_hook(hook) for norm in norms]
    network.eval()(images)
    for handle in handles:
        handle.remove()
    return losses


def digits_network() -> nn.Module:
    network = digits_resnet()
    network.load_state_dict(load_file(WEIGHTS))
    return network.requires_grad_(False)


def test_loss_and_gradient_of_a_whole_network_are_those_of_forward_hooks(digits_teacher: Teacher):
    graph = statistics_graph(digits_teacher.graph, torch.float32)
    images = draw((6, 1, 16, 16)).requires_grad_()
    losses = graph(images)
    own_images = images.detach().clone().requires_grad_()
    wanted = hook_losses(digits_network(), own_images)
    assert len(losses) == len(wanted) == 9
    torch.testing.assert_close(torch.stack(losses), torch.stack(wanted), rtol=1e-4, atol=1e-6)
    torch.stack(losses).sum().backward()
    torch.stack(wanted).sum().backward()
    assert images.grad is not None and own_images.grad is not None
    scale = float(own_images.grad.abs().max())
    torch.testing.assert_close(images.grad, own_images.grad, rtol=1e-3, atol=1e-4 * scale)


def test_bfloat16_network_has_nearly_the_same_losses(digits_teacher: Teacher):
    graph = statistics_graph(digits_teacher.graph, torch.bfloat16)
    images = draw((32, 1, 16, 16))
    losses = torch.stack(graph(images.bfloat16()))
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, torch.stack(hook_losses(digits_network(), images)), rtol=0.05, atol=0.01)


def test_graph_ends_at_the_last_site_and_nothing_learns(digits_teacher: Teacher):
    graph = statistics_graph(digits_teacher.graph, torch.float32)
    output = next(iter(reversed(graph.graph.nodes)))
    needed, waiting = set(), [output]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    assert needed == set(graph.graph.nodes)
    keys = named_tensors(graph)
    assert "layer3.0.conv2.weight" in keys and not any(key.startswith("fc.") for key in keys)
    assert not any(t.requires_grad for t in (*graph.parameters(), *graph.buffers()))
    sites = [m for m in graph.modules() if isinstance(m, StatisticsSite)]
    assert [site.needs_y for site in sites].count(False) == 2  # the two branches that the last block adds


def test_teacher_is_left_alone(digits_teacher: Teacher):
    before = copy.deepcopy(named_tensors(digits_teacher.graph))
    code = digits_teacher.graph.code
    graph = statistics_graph(digits_teacher.graph, torch.bfloat16)
    torch.stack(graph(draw((4, 1, 16, 16)).bfloat16())).sum()
    assert digits_teacher.graph.code == code
    for key, value in named_tensors(digits_teacher.graph).items():
        assert value.dtype == before[key].dtype and torch.equal(value, before[key])


class Plain(nn.Module):
    """Convolution, norm, pooling, norm, linear layer; which norms is up to the test."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.first(self.conv(x)).relu().mean((2, 3))))


class FunctionalNorms(nn.Module):
    """Two functional batch norms whose statistics have one owner."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)
        for i in (1, 2):
            self.register_buffer(f"mean{i}", torch.randn(4))
            self.register_buffer(f"var{i}", torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(self.conv1(x), self.mean1, self.var1).relu()
        x = F.batch_norm(self.conv2(x), self.mean2, self.var2).relu()
        return self.fc(x.mean((2, 3)))


def with_statistics(norm: nn.Module) -> nn.Module:
    draws = torch.Generator().manual_seed(3)
    norm.running_mean.copy_(torch.randn(len(norm.running_mean), generator=draws))
    norm.running_var.copy_(torch.rand(len(norm.running_var), generator=draws) + 0.2)
    return norm


def shared_norm() -> nn.Module:
    norm = with_statistics(nn.BatchNorm1d(4))

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.norm(x).relu())

    return Twice()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "affine-and-1d": (lambda: Plain(with_statistics(nn.BatchNorm2d(4)), with_statistics(nn.BatchNorm1d(4))), 2),
    "no-affine": (lambda: Plain(with_statistics(nn.BatchNorm2d(4, affine=False)), nn.Identity()), 1),
    "shared": (lambda: Plain(nn.Identity(), shared_norm()), 2),
}


@pytest.mark.parametrize(("build", "num_sites"), NETWORKS.values(), ids=NETWORKS.keys())
def test_kinds_of_batch_norms(build: Callable[[], nn.Module], num_sites: int):
    network = build()
    graph = statistics_graph(make_teacher("plain", network, SPEC).graph, torch.float32)
    images = draw((8, 1, 8, 8))
    losses = graph(images)
    with_running = [m for m in network.modules() if getattr(m, "running_mean", None) is not None]
    assert with_running and len(losses) == num_sites
    inputs: list[tuple[nn.Module, Tensor]] = []
    for norm in with_running:
        norm.register_forward_pre_hook(lambda layer, args: inputs.append((layer, args[0])))
    network.eval()(images)
    wanted = [numpy_loss(x.detach().numpy(), layer.running_mean, layer.running_var) for layer, x in inputs]
    np.testing.assert_allclose([loss.item() for loss in losses], wanted, rtol=1e-4)


def test_functional_batch_norms_of_one_owner_keep_their_own_statistics():
    network = FunctionalNorms()
    graph = statistics_graph(make_teacher("functional", network, SPEC).graph, torch.float32)
    images = draw((8, 1, 8, 8))
    first = network.conv1(images)
    second = network.conv2(F.batch_norm(first, network.mean1, network.var1).relu())
    wanted = [
        numpy_loss(first.detach().numpy(), network.mean1, network.var1),
        numpy_loss(second.detach().numpy(), network.mean2, network.var2),
    ]
    np.testing.assert_allclose([loss.item() for loss in graph(images)], wanted, rtol=1e-4)


def test_network_without_batch_norm_is_an_input_error():
    teacher = make_teacher("plain", Plain(nn.Identity(), nn.Identity()), SPEC)
    with pytest.raises(InputError, match="no batch-norm layers"):
        statistics_graph(teacher.graph, torch.float32)


# the image term


def test_image_term_is_that_of_numpy():
    images = draw((3, 2, 4, 5))
    pixels = images.double().numpy().reshape(3, 2, -1)
    wanted = ((pixels.mean(2) ** 2).sum() + ((pixels.std(2, ddof=1) - 1) ** 2).sum()) / 3
    assert image_statistics_loss(images).item() == pytest.approx(wanted, rel=1e-5)


def test_image_term_has_a_finite_gradient_on_flat_images():
    images = torch.full((2, 1, 4, 4), 0.5, requires_grad=True)
    image_statistics_loss(images).backward()
    assert images.grad is not None and torch.isfinite(images.grad).all()
