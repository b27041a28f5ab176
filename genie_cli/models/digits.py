"""The embedded teacher: a small residual network for scikit-learn's digits."""

from __future__ import annotations

from torch import Tensor, nn

from genie_cli.config import InputSpec

INPUT_SPEC = InputSpec(num_channels=1, size=16, mean=(0.3055,), std=(0.3185,))
"""Digits enlarged to 16x16, normalised by the mean and std of the training split."""

_WIDTHS = (16, 32, 64)
_NUM_CLASSES = 10


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a projection where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        """Build a block ``[B, in_channels, S, S] -> [B, channels, S/stride, S/stride]``."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, S, S]`` to ``[B, channels, S/stride, S/stride]``."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y + shortcut)
        return out


class DigitsResNet(nn.Module):
    """Three stages of one block with 16, 32 and 64 channels; names as in torchvision's ResNet."""

    def __init__(self) -> None:
        """Build the network: 77,754 parameters, nine convolutions and a linear layer."""
        super().__init__()
        first, second, third = _WIDTHS
        self.conv1 = nn.Conv2d(INPUT_SPEC.num_channels, first, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(BasicBlock(first, first, 1))
        self.layer2 = nn.Sequential(BasicBlock(first, second, 2))
        self.layer3 = nn.Sequential(BasicBlock(second, third, 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, _NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 1, 16, 16]`` to logits ``[B, 10]``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def digits_resnet() -> DigitsResNet:
    """The network without its weights, which are ``assets/digits_resnet.safetensors``."""
    return DigitsResNet()
