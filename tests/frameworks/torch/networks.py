"""Toy networks that several tests need, and the numbers that they are given."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from conv_cases import integers
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def net(forward: Callable[..., Any], **parts: nn.Module) -> Any:
    """Return a model of a class of its own, with this forward and these parts by name."""
    model = type("Net", (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        model.add_module(name, part)
    return model


class Block(nn.Module):
    """Branches, normalisation, dropout, a layer called twice and one at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.same = nn.ModuleDict({"place": self.stem})
        self.dropout = nn.Dropout(0.5)
        self.head = nn.ConvTranspose2d(4, 2, 2, stride=2)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> dict[str, Any]:
        y = self.norm(self.stem(x) + self.same["place"](x.flip(-1)))
        y = self.twice(torch.relu(self.twice(y)))
        y = self.dropout(y) * scale
        return {"out": self.head(y), "features": (y, [y.mean()]), "name": "block", "size": 4}


def network() -> nn.Sequential:
    """Square kernels and equal sizes wherever a mistake could hide behind a shape."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
            norm=nn.BatchNorm2d(4),
            relu=nn.ReLU(),
            grouped=nn.Conv2d(4, 4, 3, padding=(2, 1), dilation=(2, 1), groups=2),
            strided=nn.Conv2d(4, 4, (3, 3), stride=(2, 1), padding=(1, 1)),
            up=nn.ConvTranspose2d(4, 4, 3, stride=(1, 2), padding=1, output_padding=(0, 1)),
            last=nn.Conv2d(4, 3, 1),
        )
    ).eval()


def with_integers(model: nn.Module) -> nn.Module:
    """Small integers in float64, where sums are exact; BatchNorms divide by powers of two."""
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(integers(parameter.shape, seed=seed))
        for part in model.modules():
            if isinstance(part, _BatchNorm):
                part.eps = 0.0
                part.running_var.fill_(4.0)
                part.running_mean.copy_(integers(part.running_mean.shape, seed=1))
                part.weight.mul_(2)
    return model.double().eval()


def trained(model: nn.Module) -> nn.Module:
    """Give the BatchNorms the numbers that they may have after training."""
    for part in model.modules():
        if isinstance(part, _BatchNorm):
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
    return model.eval()
