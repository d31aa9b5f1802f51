"""What the tests of insertion share: mechanisms with options for any width, and small networks."""

import math
from typing import NamedTuple

import torch
from torch import nn

from cases import plain

# Widths of 8 and more; a mechanism's own defaults are for 64 and more.
OPTIONS = {
    "cbam": {"reduction": lambda c: max(c // 8, 1)},
    "da": {"reduction": 4},
    "ea": {"memory_size": 8},
    "epsa": {"groups": (1, 1, 2, 2), "reduction": 1},
    "mhsa": {"num_heads": lambda c: math.gcd(c, 4)},
    "se": {"reduction": lambda c: max(c // 8, 1)},
    "sge": {"groups": lambda c: math.gcd(c, 8)},
    "sk": {"groups": lambda c: math.gcd(c, 8), "min_hidden": 4},
}
# Parameters without effect on the mechanism's result: a softmax cancels them.
CANCELLED = {"da": ["position.key.bias"], "ea": ["query.bias"]}


class Residual(nn.Module):
    """A residual block as torchvision writes it: all in place."""

    def __init__(self, channels, out_channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride > 1 or channels != out_channels:
            conv = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out_channels))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Classifier(nn.Module):
    """Two stages of residual blocks, with dropout, for pictures of any size."""

    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(
            nn.Sequential(Residual(width, width), Residual(width, width)),
            nn.Sequential(Residual(width, 2 * width, 2), Residual(2 * width, 2 * width)),
        )
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x):
        z = self.stages(self.stem(x)).mean((2, 3))
        return self.head(self.dropout(z))


class ChannelsLast(nn.Module):
    """A block whose layers return (b, h, w, c), as ConvNeXt's do."""

    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Linear(width, width)

    def forward(self, x):
        y = self.conv(x).permute(0, 2, 3, 1)
        return (y + self.mlp(self.norm(y))).permute(0, 3, 1, 2)


class Tokens(nn.Module):
    """A vision transformer's way with patches of 4 × 4: tokens, after some of another kind."""

    def __init__(self, width=8, first=1):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.first = nn.Parameter(torch.randn(1, first, width))
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Linear(width, width)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).mT
        y = torch.cat([self.first.expand(len(x), -1, -1), tokens], 1)
        return y + self.mlp(self.norm(y))


class UNet(nn.Module):
    """A U-Net for segmentation: two levels down, two up, with what was passed by."""

    def __init__(self, width=8, classes=3):
        super().__init__()
        self.encoder = nn.ModuleList([self.convs(3, width), self.convs(width, 2 * width)])
        self.bottom = self.convs(2 * width, 4 * width)
        self.decoder = nn.ModuleList(
            [self.convs(6 * width, 2 * width), self.convs(3 * width, width)]
        )
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def convs(channels, out_channels):
        layers = []
        for given in (channels, out_channels):
            layers += [
                nn.Conv2d(given, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            ]
        return nn.Sequential(*layers)

    def forward(self, x):
        passed = []
        for level in self.encoder:
            x = level(x)
            passed.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = self.bottom(x)
        for level in self.decoder:
            x = nn.functional.interpolate(x, scale_factor=2.0)
            x = level(torch.cat([x, passed.pop()], 1))
        return self.head(x)


def pictures(h=16, w=24, b=2):
    return torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(1))


class WithInsertions(NamedTuple):
    """A network with a mechanism in it, for tests that build and train it."""

    mechanism: str

    @property
    def name(self):
        return f"{self.mechanism} inserted"

    def build(self):
        torch.manual_seed(0)
        network = Classifier()
        options = OPTIONS[self.mechanism] | {"after": "stages.*.*.bn2", "example": pictures()}
        plain("insertion").insert_attention(network, self.mechanism, **options)
        return network

    def example(self, b):
        return pictures(b=b)


INSERTED = [WithInsertions(mechanism) for mechanism in ("cbam", "da", "ea")]
