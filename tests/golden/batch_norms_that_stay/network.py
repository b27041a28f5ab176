"""A network with two batch norms that follow no layer with a weight: one before a ReLU, one before a convolution."""

import torch
from torch import Tensor, nn


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3)
        self.first, self.second = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.conv, self.fc = nn.Conv2d(6, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = torch.relu(self.first(y * y))
        return self.fc(self.conv(self.second(y)).relu().mean((2, 3)))


def pre_activation() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    network = PreActivation()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                values = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values / 2)
    return network
