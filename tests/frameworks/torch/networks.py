"""Toy networks that several tests need, their numbers, and whether two hold the same ones."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
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


def classifier() -> nn.Sequential:
    """A network to train on images 3x16x16 of six classes, with the same numbers every time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2, dilation=2, padding=2),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 3, stride=2, output_padding=1, groups=2),
        nn.Flatten(),
        nn.Linear(4 * 18 * 18, 6),
    )


def trained(model: nn.Module) -> nn.Module:
    """Return the model with real numbers, its BatchNorms as after training."""
    torch.manual_seed(0)
    for part in model.modules():
        if isinstance(part, _BatchNorm):
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
    return model.eval()


def two_convs() -> nn.Sequential:
    """One CONV layer, and one inside a part, before a BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    )


def through_a_file(thing: Any, *, weights_only: bool = False) -> Any:
    """Return what `torch.load` reads of what `torch.save` has written."""
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


def assert_same_state(found: nn.Module, expected: nn.Module) -> None:
    """The same names in the same order, the same dtypes and numbers."""
    ours, theirs = found.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert torch.equal(ours[name], value), name
