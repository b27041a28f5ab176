"""Poolings on a GPU: PyTorch's values and gradients, the same in every run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genie_cli.errors import UsageError
from genie_cli.models.graph import pooling
from genie_cli.models.graph.repeatable import check_repeatable
from genie_cli.models.teacher import Teacher, make_teacher
from genie_cli.runtime.settings import configure_process
from tests.cuda.runs import network
from tests.support.networks import plain_input

Pool = Callable[[Tensor], Tensor]
POOLS: dict[str, tuple[Pool, Pool]] = {
    "maximum": (lambda x: pooling.max_pool2d(x, (3, 3), (2, 2), (1, 1)), lambda x: F.max_pool2d(x, 3, 2, 1)),
    "dilated": (
        lambda x: pooling.max_pool2d(x, (2, 3), (1, 2), (1, 1), (2, 1), True),
        lambda x: F.max_pool2d(x, (2, 3), (1, 2), (1, 1), (2, 1), True),
    ),
    "average to 4 x 2": (lambda x: pooling.adaptive_avg_pool2d(x, (4, 2)), lambda x: F.adaptive_avg_pool2d(x, (4, 2))),
    "average to 3 x 3": (lambda x: pooling.adaptive_avg_pool2d(x, (3, 3)), lambda x: F.adaptive_avg_pool2d(x, (3, 3))),
}


def value_and_gradient(pool: Pool, images: Tensor) -> tuple[Tensor, Tensor]:
    x = images.detach().requires_grad_()
    pooled = pool(x)
    pooled.square().sum().backward()
    assert x.grad is not None
    return pooled.detach().cpu(), x.grad.cpu()


@pytest.mark.parametrize("size", [4, 6, 7])
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=["older", "newer"])
@pytest.mark.parametrize(("own", "of_pytorch"), POOLS.values(), ids=POOLS.keys())
def test_poolings_are_those_of_pytorch_and_repeat(
    own: Pool,
    of_pytorch: Pool,
    capability: tuple[int, int],
    size: int,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    drawn = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
    images = drawn.contiguous(memory_format=torch.channels_last)
    wanted = value_and_gradient(of_pytorch, images)
    got, again = (value_and_gradient(own, images.to(device)) for _ in range(2))
    for i in range(2):
        torch.testing.assert_close(got[i], wanted[i])
        assert torch.equal(got[i], again[i])


class Enlarged(nn.Module):
    """Bilinear interpolation, whose gradient does not repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.bn(self.conv(x)), scale_factor=2.0, mode="bilinear").mean((2, 3))


@pytest.fixture(scope="module")
def enlarged() -> Teacher:
    return make_teacher("enlarged", Enlarged(), plain_input(1, 8))


def test_what_does_not_repeat_is_refused_before_the_work(enlarged: Teacher, device: torch.device):
    check_repeatable(network("small"), device)
    with pytest.raises(UsageError, match=r"upsample_bilinear2d_backward.*--no-deterministic"):
        check_repeatable(enlarged, device)
    configure_process(device, deterministic=False)
    check_repeatable(enlarged, device)
