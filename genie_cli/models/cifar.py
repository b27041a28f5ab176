"""The CIFAR ResNets of He et al. 2015 (section 4.2): 6n+2 layers, option-A shortcuts."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut subsamples and zero-pads channels (option A)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        """Build a block ``[B, in_channels, S, S] -> [B, channels, S/stride, S/stride]``."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.extra_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, S, S]`` to ``[B, channels, S/stride, S/stride]``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride != 1 or self.extra_channels:
            before = self.extra_channels // 2
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, before, self.extra_channels - before))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """Three stages of n blocks with 16, 32 and 64 channels on 32x32 images."""

    def __init__(self, num_blocks: int, num_classes: int = 10) -> None:
        """Build the network of ``6 * num_blocks + 2`` layers."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, num_blocks, 1)
        self.layer2 = self._stage(16, 32, num_blocks, 2)
        self.layer3 = self._stage(32, 64, num_blocks, 2)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(in_channels: int, channels: int, num_blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(num_blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 3, 32, 32]`` to logits ``[B, num_classes]``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def cifar_resnet(depth: int) -> CifarResNet:
    """The member of the family with `depth` = 6n + 2 layers: 20, 32, 44 or 56."""
    return CifarResNet((depth - 2) // 6)
