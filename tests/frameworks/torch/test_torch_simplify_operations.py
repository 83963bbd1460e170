"""Operations of segmentation networks, and how a further one is taught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conv_cases import integers
from simplified_models import exactly, trained
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet, segmentation

import convfc
from convfc.errors import UnsupportedLayer
from convfc.frameworks.torch.simplify import OPERATIONS, restore, simplify
from convfc.rounding import UNIT_ROUNDOFF, gamma

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """A convolution, and what a function makes of its input and its output."""

    def __init__(self, call: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.call = nn.Conv2d(2, 2, 3, padding=1), call

    def forward(self, x: Tensor) -> Any:
        return self.call(x, self.conv(x))


EXACT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "maximum_of_a_constant": lambda x, y: torch.maximum(y, torch.tensor(3.0, dtype=y.dtype)),
    "maximum_broadcast": lambda x, y: torch.maximum(x, y[:, :1]),
    "clamp_by_tensors": lambda x, y: torch.clamp(y, x - 1, x + 1),
    "stack": lambda x, y: torch.stack([x, y, -x], 2),
    "where_relu": lambda x, y: torch.where(y > 0, y, 0.0),
    "where_not": lambda x, y: torch.where(y <= 0, 0.0, y),
    "where_leaky": lambda x, y: torch.where(y > 0, y, 0.25 * y),
    "where_leaky_from_a_threshold": lambda x, y: torch.where(y >= 2, y, 0.5 * y + 1),
    "where_threshold": lambda x, y: torch.where(y >= 2, y, 2.0),
    "where_absolute": lambda x, y: torch.where(y < 0, -y, y),
    "where_larger": lambda x, y: torch.where(x > y, x, y),
    "where_smaller": lambda x, y: torch.where(x > y, y, x),
    "where_by_channel": lambda x, y: torch.where(
        y > 0, y, y * torch.tensor([0.5, -2.0], dtype=y.dtype).reshape(2, 1, 1)
    ),
    "nearest": lambda x, y: F.interpolate(y, size=(9, 7)),
    "nearest_exact": lambda x, y: F.interpolate(y, scale_factor=0.5, mode="nearest-exact"),
    "bilinear": lambda x, y: F.interpolate(y, scale_factor=2, mode="bilinear"),
    "bilinear_corners": lambda x, y: F.interpolate(
        y, size=(9, 11), mode="bilinear", align_corners=True
    ),
    "picked": lambda x, y: y[:, [1, 0, 0]],
    "if_of_a_shape": lambda x, y: y + 1 if y.shape[2] > 4 else y.view(-1),
}
EXACT |= {f"{name}_of_a_relu": lambda x, y, f=f: f(x, F.relu(y)) for name, f in EXACT.items()}


@pytest.mark.parametrize("branches", ["add", "carry"])
@pytest.mark.parametrize("name", EXACT)
def test_on_integers_not_a_bit_differs(name: str, branches: str):
    model, x = exactly(Net(EXACT[name])), 16 * integers((3, 2, 5, 6), seed=2)
    y = model(x)
    simple = simplify(model, (x[:1],), branches=branches)
    assert {type(part) for part in simple.modules()} <= {
        *(nn.Linear, nn.ReLU, nn.Flatten, nn.Unflatten, nn.Sequential, type(simple))
    }
    assert simple(x).shape == y.shape
    assert torch.equal(simple(x), y)
    assert torch.equal(restore(simple).conv.weight, model.conv.weight)


UPSAMPLES = {
    "nearest": nn.Upsample(scale_factor=3),
    "bilinear": nn.Upsample(scale_factor=1.5, mode="bilinear"),
    "bilinear-corners": nn.UpsamplingBilinear2d((7, 9)),
    "bicubic": nn.Upsample((9, 4), mode="bicubic"),
    "smaller": nn.Upsample((3, 3), mode="bilinear"),
    "antialias": Net(lambda x, y: F.interpolate(y, (3, 4), mode="bilinear", antialias=True)),
}


@pytest.mark.parametrize("name", UPSAMPLES)
def test_upsampling_is_a_matrix(name: str):
    model, x = nn.Sequential(UPSAMPLES[name]).double().eval(), torch.randn(3, 2, 5, 6).double()
    y, simple = model(x), simplify(model, (x,))
    assert sum(type(part) is nn.Linear for part in simple.modules()) == 1
    terms = max(int((part.weight != 0).sum(1).max()) for part in simple if hasattr(part, "weight"))
    size = simple[1].weight.abs() @ x.abs().flatten(1).T
    bound = gamma(2 * terms + 9, UNIT_ROUNDOFF["float64"]) * (size.max() + 1)
    assert bool(((simple(x) - y).abs() <= bound).all())


@pytest.mark.parametrize("ndim", [1, 3])
def test_linear_interpolation_in_other_dimensions(ndim: int):
    mode = {1: "linear", 3: "trilinear"}[ndim]
    model = nn.Sequential(nn.Upsample(scale_factor=2, mode=mode)).double()
    x = 64 * integers((2, 2, *(3, 4, 3)[:ndim]))
    assert torch.equal(simplify(model, (x,))(x), model(x))


class UNet(nn.Module):
    """Down, up with a skip connection, and a map of scores."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.bottom = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.up = nn.Upsample(scale_factor=2, mode=mode)
        self.last = nn.Sequential(nn.Conv2d(7, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        y: Tensor = self.last(torch.cat([skip, self.up(self.bottom(self.pool(skip)))], 1))
        return y


@pytest.mark.parametrize("max_pool", ["keep", "relu"])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_u_net(mode: str, max_pool: str):
    model, x = trained(UNet(mode)), torch.randn(2, 2, 8, 8)
    simple = convfc.simplify(model, x, max_pool=max_pool)
    certificate = convfc.verify(model, simple, x)
    assert certificate.holds, str(certificate)
    assert simple(x).shape == (2, 2, 8, 8)
    back = convfc.to_conv(simple)
    assert all(torch.equal(t, model.state_dict()[key]) for key, t in back.state_dict().items())


class Scores(nn.Module):
    """The one map of a torchvision segmentation network, which returns a dictionary."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x)["out"]
        return y


@pytest.mark.parametrize("name", ["fcn", "deeplabv3"])
def test_segmentation_networks_of_torchvision(name: str):
    """Cut small: a ResNet with one thin block a stage behind, and two classes."""
    torch.manual_seed(0)
    backbone = resnet.ResNet(
        resnet.Bottleneck, [1, 1, 1, 1], width_per_group=4,
        replace_stride_with_dilation=[False, True, True],
    )  # fmt: skip
    kind = getattr(segmentation, name)
    made = getattr(kind, {"fcn": "_fcn_resnet", "deeplabv3": "_deeplabv3_resnet"}[name])
    model, x = trained(Scores(made(backbone, 2, None))), torch.randn(1, 3, 16, 16)
    simple = convfc.simplify(model, x, sparse=True)
    assert not any(isinstance(part, nn.Conv2d | nn.Upsample) for part in simple.modules())
    certificate = convfc.verify(model, simple, x)
    assert certificate.holds, str(certificate)
    assert simple(x).shape == (1, 2, 16, 16)


def test_a_further_operation_is_one_entry():
    """Of torch.xlogy nothing is known; that xlogy(x, e) is x is said here."""
    model, x = (
        exactly(Net(lambda x, y: torch.xlogy(y, torch.tensor(torch.e)))),
        integers((2, 2, 3, 3)),
    )
    with pytest.raises(UnsupportedLayer, match=r"the model itself: xlogy\(\) is not known"):
        simplify(model, (x,))

    @OPERATIONS.register("xlogy")
    def _(step: Any, x: Any, other: Tensor) -> Any:
        return x.value

    try:
        assert simplify(model, (x,))(x).shape == model(x).shape
    finally:
        del OPERATIONS["xlogy"]
