"""The form that a network is deployed in: by its modules' own methods, and compared with the form it was trained in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from genie_cli.config import InputSpec, ModelConfig
from genie_cli.errors import InputError
from genie_cli.models.checkpoints import state_sha256
from genie_cli.models.graph.batch_norm import batch_norm_sites
from genie_cli.models.graph.layers import weight_layers
from genie_cli.models.reparameterization import NothingToMergeError, reparameterized
from genie_cli.models.teacher import make_teacher
from genie_cli.models.zoo import load_untrained
from tests.support.reparameterizable import Block, Net, build

SPEC = InputSpec(num_channels=1, size=8, mean=(0.3,), std=(0.3,))
IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@torch.no_grad()
def merge(network: nn.Module, images: Tensor = IMAGES) -> nn.Module:
    """The merged network, which computes the same; the given one is left as it was."""
    before = state_sha256(network)
    found = reparameterized("network", network, SPEC)
    assert found.source_sha256 == before == state_sha256(network)
    assert relative(found.network(images), network.eval()(images)) < 1e-5
    assert "its output moves by" in found.note
    return found.network


def test_blocks_become_single_convolutions() -> None:
    merged = merge(build())
    teacher = make_teacher("network", merged, SPEC)
    names = [layer.name for layer in weight_layers(teacher.graph)]
    assert names == [*(f"blocks.{i}.merged" for i in range(4)), "fc"]
    assert not [module for module in merged.modules() if isinstance(module, nn.BatchNorm2d)]


class ConvNorm(nn.Sequential):
    """A convolution and a batch norm, as LeViT and RepViT write them: `fuse` returns a new module."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(channels)
        )

    def fuse(self) -> nn.Module:
        conv, norm = self[0], self[1]
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        fused = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding)
        fused.weight.data = conv.weight * scale.view(-1, 1, 1, 1)
        fused.bias.data = norm.bias - scale * norm.running_mean
        return fused


class CallsItsParts(nn.Module):
    """A block that merges what its parts return: the parts must not be merged before it."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = ConvNorm(4, 3), ConvNorm(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.large(x) + self.small(x)

    def fuse(self) -> nn.Module:
        large, small = self.large.fuse(), self.small.fuse()
        large.weight.data += nn.functional.pad(small.weight, (1, 1, 1, 1))
        large.bias.data += small.bias
        return large


class NeedsMergedParts(CallsItsParts):
    """A block that merges convolutions: its parts must be merged before it."""

    def fuse(self) -> nn.Module:
        self.large.weight.data += nn.functional.pad(self.small.weight, (1, 1, 1, 1))
        self.large.bias.data += self.small.bias
        return self.large


class InPlace(ConvNorm):
    """A module whose method changes it and returns nothing, beside a layer that is called as a method is."""

    fuse = None  # type: ignore[assignment]

    def __init__(self, channels: int = 4, kernel: int = 3) -> None:
        super().__init__(channels, kernel)
        self.switch_to_deploy = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[0](x))

    def reparameterize(self, verbose: bool = False) -> None:
        self[0], self[1] = ConvNorm.fuse(self), nn.Identity()


def network_of(block: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    one = block()
    network = nn.Sequential(nn.Conv2d(1, 4, 1), one, nn.ReLU(), one, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


@pytest.mark.parametrize("block", [CallsItsParts, NeedsMergedParts, InPlace, lambda: ConvNorm(4, 3)])
def test_the_order_and_the_kind_of_method_are_found(block: Callable[[], nn.Module]) -> None:
    """The block stands in two places, and stays one."""
    merged = merge(network_of(block))
    assert merged[1] is merged[3]
    assert not [module for module in merged.modules() if isinstance(module, nn.BatchNorm2d)]


def test_a_method_of_the_network_itself_counts() -> None:
    class Whole(Net):
        def fuse(self) -> None:
            for block in self.blocks:
                block.switch_to_deploy()
                block.__class__ = type("Merged", (nn.Module,), {"forward": lambda self, x: self.merged(x).relu()})

    torch.manual_seed(0)
    assert hasattr(merge(Whole()).blocks[0], "merged")


class Forgetful(Block):
    def switch_to_deploy(self) -> None:
        self.small_norm.bias.data += 0.1
        super().switch_to_deploy()


class Broken(Block):
    def switch_to_deploy(self) -> None:
        raise RuntimeError("no branch")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Forgetful, r"'network' does not compute the same .* differs by \S+ .* after Forgetful.switch_to_deploy\(\)"),
        (Broken, r"Broken.switch_to_deploy\(\) failed: RuntimeError: no branch"),
    ],
)
def test_a_merge_that_does_not_hold_is_refused(block: type[Block], message: str) -> None:
    network = Net()
    network.blocks = nn.Sequential(nn.Conv2d(1, 8, 3), block(8, 16))
    with pytest.raises(InputError, match=message):
        reparameterized("network", network.eval(), SPEC)


def test_a_network_that_fails_as_it_was_trained_is_told() -> None:
    with pytest.raises(InputError, match=r"'network' fails on images of 3x8x8: RuntimeError"):
        reparameterized("network", build(), InputSpec(size=8))


class Outputs(nn.Module):
    """Two maps in a dictionary, one of them channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(1, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.block(x)
        return {"map": y.permute(0, 2, 3, 1), "score": y.mean((1, 2, 3))}


def test_outputs_of_any_structure_are_compared() -> None:
    found = reparameterized("network", Outputs().eval(), SPEC)
    assert set(found.network(IMAGES)) == {"map", "score"} and hasattr(found.network.block, "merged")


class WithArguments(nn.Conv2d):
    def fuse(self, other: Tensor) -> Tensor:
        return self(other)


@pytest.mark.parametrize("block", [lambda: nn.Conv2d(4, 4, 1), lambda: WithArguments(4, 4, 1)])
def test_a_network_that_offers_nothing_is_refused(block: Callable[[], nn.Module]) -> None:
    with pytest.raises(
        NothingToMergeError, match=r"none has a method reparameterize\(\), switch_to_deploy\(\), .*fuse"
    ):
        reparameterized("network", network_of(block), SPEC)


def test_a_network_that_is_merged_already_is_told() -> None:
    class Merged(nn.Conv2d):
        def reparameterize(self) -> None:
            return

    with pytest.raises(NothingToMergeError, match=r"Merged.reparameterize\(\) changed nothing in 'network'"):
        reparameterized("network", network_of(lambda: Merged(4, 4, 1)), SPEC)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["repvgg_a0", "repvit_m0_9"])
def test_networks_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    spec = InputSpec(size=64)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
        found = reparameterized(name, network, spec)
        images = torch.randn(2, 3, 64, 64)
        assert relative(found.network(images), network(images)) < 1e-5
    before, after = (len(batch_norm_sites(make_teacher(name, each, spec).graph)) for each in (network, found.network))
    assert after < before


@pytest.mark.slow
def test_a_name_of_timm_is_reparameterized() -> None:
    pytest.importorskip("timm")
    teacher = load_untrained(ModelConfig(name="timm:repvgg_a0", input_size=64, reparameterize=True))
    assert teacher.source_sha256 is not None and teacher.known_sha256 == {teacher.sha256, teacher.source_sha256}
    assert len(weight_layers(teacher.graph)) == 23 and not batch_norm_sites(teacher.graph)
    assert any("reparameterized by RepVggBlock.reparameterize() (22 times)" in note for note in teacher.notes)
