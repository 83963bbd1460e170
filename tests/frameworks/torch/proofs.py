"""What the tests of verify share: networks with something of everything, and what a proof is."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convfc.certificate import Certificate, LayerCertificate

MARKS = [
    pytest.mark.usefixtures("one_thread", "seed_zero"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
    pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning"),
]
QUANTITIES = {"output", "input", "weight", "bias"}
DTYPES = (torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128)


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


def only(certificate: Certificate) -> LayerCertificate:
    (layer,) = certificate.layers
    return layer


def assert_proven(certificate: Certificate, *, dtype: torch.dtype = torch.float32) -> None:
    """It holds, and not because nothing was compared."""
    assert certificate.holds, str(certificate)
    for layer in certificate.layers:
        biased = len(layer.weights) == 2
        quantities = QUANTITIES if biased else QUANTITIES - {"bias"}
        assert layer.own.keys() == layer.float64.keys() == quantities
        assert layer.exact.identical is True
        for comparison in layer.float64.values():
            assert comparison.dtype == ("complex128" if dtype.is_complex else "float64")
            assert comparison.ratio is not None
            assert comparison.ratio <= 1
    for output in certificate.network.outputs:
        assert output.float64 is not None
        assert output.rounding is not None
