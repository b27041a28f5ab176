"""Small networks, inputs and images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genie_cli.config import InputSpec
from genie_cli.data.digits import split
from genie_cli.data.normalize import normalize_pixels
from genie_cli.models.digits import INPUT_SPEC


class StridedNet(nn.Module):
    """Two strided convolutions for any input size, with running statistics of their own, and a classifier."""

    def __init__(self, seed: int, num_channels: int = 1, num_classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.bn1 = nn.Conv2d(num_channels, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)
        for norm in (self.bn1, self.bn2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


class Cell(nn.Module):
    """Two convolutions, and a skip from a tensor that they do not read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)

    def forward(self, last: Tensor, before: Tensor) -> Tensor:
        return (self.conv2(self.conv1(last).relu()) + before).relu()


class CellNet(nn.Module):
    """Cells that read the last two tensors; all tensors are joined at the end, so that all are alive until then.

    Each tensor is read by the first convolution of the next cell, which gives it its quantizer, by the sum of the one
    after that, and by the concatenation.
    """

    def __init__(self, num_cells: int = 4, width: int = 6, num_channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.side = nn.Conv2d(num_channels, width, 3, 2, 1), nn.Conv2d(width, width, 1)
        self.cells = nn.ModuleList(Cell(width) for _ in range(num_cells))
        self.join, self.fc = nn.Conv2d(width * (num_cells + 2), 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        states = [self.stem(x).relu()]
        states.append(self.side(states[0]).relu())
        for cell in self.cells:
            states.append(cell(states[-1], states[-2]))
        return self.fc(self.join(torch.cat(states, 1)).relu().mean((2, 3)))


def plain_input(num_channels: int, size: int | tuple[int, int]) -> InputSpec:
    """An input whose pixels are its values: mean 0, standard deviation 1."""
    return InputSpec(num_channels=num_channels, size=size, mean=(0.0,) * num_channels, std=(1.0,) * num_channels)


def digit_images(count: int) -> Tensor:
    """The first images of the bundled digits' training half, normalised for the embedded network."""
    return normalize_pixels(split(train=True)[0][:count], INPUT_SPEC)


def noise(count: int, num_channels: int = 1, size: int = 16, seed: int = 0) -> Tensor:
    """Images of white noise ``[count, num_channels, size, size]``."""
    return torch.randn(count, num_channels, size, size, generator=torch.Generator().manual_seed(seed))
