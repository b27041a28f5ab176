"""A small network of blocks that merge their branches, after RepVGG; a user's file, without imports of the tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def folded(conv: nn.Conv2d | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A 3x3 kernel and a bias that compute a 3x3, 1x1 or identity branch and its batch norm."""
    channels = norm.num_features
    kernel = torch.eye(channels).view(channels, channels, 1, 1) if conv is None else conv.weight
    if kernel.shape[-1] == 1:
        kernel = F.pad(kernel, (1, 1, 1, 1))
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return kernel * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


class Block(nn.Module):
    """relu(norm(conv3x3(x)) + norm(conv1x1(x)) + norm(x)), or one convolution and a ReLU once it is merged."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.large = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.small = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.large_norm, self.small_norm = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.identity_norm = nn.BatchNorm2d(outputs) if inputs == outputs and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "merged"):
            return self.merged(x).relu()
        y = self.large_norm(self.large(x)) + self.small_norm(self.small(x))
        return (y if self.identity_norm is None else y + self.identity_norm(x)).relu()

    def switch_to_deploy(self) -> None:
        branches = [folded(self.large, self.large_norm), folded(self.small, self.small_norm)]
        if self.identity_norm is not None:
            branches.append(folded(None, self.identity_norm))
        merged = nn.Conv2d(self.large.in_channels, self.large.out_channels, 3, self.large.stride, 1)
        merged.weight.data = sum(kernel for kernel, _ in branches)
        merged.bias.data = sum(bias for _, bias in branches)
        self.merged = merged
        for name in ("large", "small", "large_norm", "small_norm", "identity_norm"):
            delattr(self, name)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(1, 8), Block(8, 8), Block(8, 16, 2), Block(16, 16))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(x).mean((2, 3)))


def build() -> nn.Module:
    """The network in the form that it is trained in, each batch norm far from the identity."""
    generator = torch.Generator().manual_seed(0)
    network = Net()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                values = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values / 2)
    return network


def deployed() -> nn.Module:
    network = build()
    for module in list(network.modules()):
        if isinstance(module, Block):
            module.switch_to_deploy()
    return network
