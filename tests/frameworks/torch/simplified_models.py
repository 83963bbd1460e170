"""Networks of the kinds that are simplified, small, and the ways to simplify them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import net
from torch import Tensor, nn
from torch.nn import functional


def lenet(pool: type[nn.Module] = nn.AvgPool2d) -> nn.Module:
    """LeNet-5 on 12x12 images."""
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), pool(2)),
        *(nn.Conv2d(4, 6, 3), nn.ReLU(), pool(2)),
        *(nn.Flatten(), nn.Linear(24, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 5)),
    )


class Residual(nn.Module):
    """A block of a ResNet; strided, its shortcut is a 1x1 convolution."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, filters, 1, stride=stride, bias=False), nn.BatchNorm2d(filters)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        out: Tensor = self.relu(y)
        return out


def resnet() -> nn.Module:
    """Two blocks and global average pooling over 4x4."""
    stem = (nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(*stem, Residual(3, 3, 1), Residual(3, 4, 2), *head)


def dense() -> nn.Module:
    """Pre-activation layers, each of which sees the outputs of all before it."""

    def run(m: Any, x: Tensor) -> Tensor:
        features = [m.stem(x)]
        for norm, conv in zip(m.norms, m.convs, strict=False):
            features.append(conv(functional.relu(norm(torch.cat(features, 1)))))
        return m.pool(functional.relu(m.norms[2](torch.cat(features, 1))))

    norms = nn.ModuleList(nn.BatchNorm2d(3 + 2 * i) for i in range(3))
    convs = nn.ModuleList(nn.Conv2d(3 + 2 * i, 2, 3, padding=1) for i in range(2))
    stem = nn.Conv2d(2, 3, 3, padding=1)
    return net(run, stem=stem, norms=norms, convs=convs, pool=nn.AvgPool2d(2))


def mobile() -> nn.Module:
    """Depthwise separable convolutions, ReLU6 and a linear bottleneck."""
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.ReLU6()),
        *(nn.Conv2d(6, 6, 3, padding=1, stride=2, groups=6), nn.BatchNorm2d(6), nn.ReLU6()),
        *(nn.Conv2d(6, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 6, 1), nn.ReLU()),
    )


def inception() -> nn.Module:
    """Branches of different depth side by side, one with a max-pooling."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = functional.relu(x - 1)
        branches = [functional.relu(m.one(x)), m.two(x), m.pool(x)]
        return m.last(torch.cat(branches, dim=1)).flatten(1)

    two = (nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1), nn.ReLU())
    parts = {"one": nn.Conv2d(2, 2, 1), "two": nn.Sequential(*two)}
    return net(run, **parts, pool=nn.MaxPool2d(3, stride=1, padding=1), last=nn.Conv2d(6, 2, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet": (lenet, (1, 12, 12)),
    "lenet_max": (lambda: lenet(nn.MaxPool2d), (1, 12, 12)),
    "resnet": (resnet, (2, 8, 8)),
    "densenet": (dense, (2, 4, 4)),
    "mobilenet": (mobile, (2, 5, 5)),
    "inception": (inception, (2, 4, 4)),
}
WAYS: dict[str, dict[str, Any]] = {
    "graph": {},
    "sequence": {"max_pool": "relu", "sequential": True},
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
