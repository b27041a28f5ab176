"""Networks of oblong images, of one output and of several, in a file for the command line."""

SOURCE = '''
from collections import namedtuple

import torch
from torch import nn


def conv_bn(inputs, outputs, stride=1, groups=1, kernel=3):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def seeded(kind, heads):
    """The same weights in each process, and running statistics as if it had been trained."""
    torch.manual_seed(7)
    network = kind(heads)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.3, 1)
    return network.eval()


class Plate(nn.Module):
    """Licence plates, 24x94: a row of characters; with `heads`, the box of the plate too."""

    def __init__(self, heads):
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 8, 2), conv_bn(8, 12, 2), conv_bn(12, 12))
        self.characters = nn.Conv2d(12, 11, 1)
        self.region = nn.Linear(12, 5)
        self.box = nn.Linear(12, 4)
        self.heads = heads

    def forward(self, x):
        x = self.body(x)
        pooled = x.mean((2, 3))
        if not self.heads:
            return self.region(pooled)
        steps = self.characters(x).mean(2).permute(2, 0, 1)  # [T, B, K], as losses of sequences have it
        return {"text": steps, "head": {"region": self.region(pooled), "box": self.box(pooled).sigmoid()}, "stride": 4}


Answer = namedtuple("Answer", "keyword loud")


class Keyword(nn.Module):
    """A spectrogram of 49 steps and 10 coefficients: separable convolutions; with `heads`, its loudness too."""

    def __init__(self, heads):
        super().__init__()
        self.body = nn.Sequential(conv_bn(1, 8, (2, 1)), conv_bn(8, 8, groups=8), conv_bn(8, 12, kernel=1))
        self.words = nn.Linear(12, 6)
        self.loud = nn.Linear(12, 1)
        self.heads = heads

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        return Answer(self.words(x), self.loud(x).squeeze(1)) if self.heads else self.words(x)


def plate():
    return seeded(Plate, False)


def plate_heads():
    return seeded(Plate, True)


def keyword():
    return seeded(Keyword, False)


def keyword_heads():
    return seeded(Keyword, True)
'''
