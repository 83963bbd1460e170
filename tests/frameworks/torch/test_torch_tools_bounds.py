"""Bound propagation, by a verifier that knows Linear and ReLU, on a simplified CNN."""

from __future__ import annotations

import warnings

import pytest
import torch
from networks import trained
from torch import Tensor, nn
from torch.nn import functional as F

import convfc

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch.jit.script, which it imports
    from bound_propagation import BoundModelFactory, HyperRectangle

RADIUS = 0.05


def cnn() -> nn.Sequential:
    """A strided layer, a normalised grouped one, a circular one, an average-pooling."""
    torch.manual_seed(1712)
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, groups=2, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 2 * 2, 3),
    )
    return trained(layers).double()


def simplified(model: nn.Module, x: Tensor) -> nn.Sequential:
    """Linear and ReLU only, on rows: what stands before them is a Flatten."""
    flatten, *layers = convfc.simplify(model, x, sequential=True)
    assert type(flatten) is nn.Flatten
    assert {type(part) for part in layers} <= {nn.Linear, nn.ReLU}
    return nn.Sequential(*layers)


def by_intervals(model: nn.Sequential, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Interval arithmetic on the CNN: centre and radius, through weights and their magnitudes."""
    for part in model:
        centre, radius = (low + high) / 2, (high - low) / 2
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            around = convolved(part, radius)
            low, high = part(centre) - around, part(centre) + around
        else:
            assert not isinstance(part, nn.BatchNorm2d)
            low, high = part(low), part(high)
    return low, high


def convolved(part: nn.Conv2d | nn.Linear, radius: Tensor) -> Tensor:
    if isinstance(part, nn.Linear):
        return F.linear(radius, part.weight.abs())
    return part._conv_forward(radius, part.weight.abs(), None)


def without_norms(model: nn.Sequential) -> nn.Sequential:
    """PyTorch folds the BatchNorm, of which interval arithmetic is another one by itself."""
    return nn.Sequential(
        *model[:2], nn.utils.fusion.fuse_conv_bn_eval(model[2], model[3]), *model[4:]
    )


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 1, 12, 12, dtype=torch.float64)


def test_the_verifier_refuses_the_cnn() -> None:
    with pytest.raises(NotImplementedError, match="Module type not supported"):
        BoundModelFactory().build(cnn())


@torch.no_grad()
def test_interval_bounds_are_those_of_the_cnn(images: Tensor) -> None:
    model = nn.Sequential(*cnn()[:6], nn.Flatten())
    tool = BoundModelFactory().build(simplified(model, images))
    found = tool.ibp(HyperRectangle.from_eps(images.flatten(1), RADIUS))
    low, high = by_intervals(without_norms(model), images - RADIUS, images + RADIUS)
    for ours, theirs in ((found.lower, low), (found.upper, high)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert (low < high).all()


def test_linear_bounds_hold_on_the_cnn_and_are_tighter_than_intervals(images: Tensor) -> None:
    model = cnn()
    tool = BoundModelFactory().build(simplified(model, images))
    box = HyperRectangle.from_eps(images.flatten(1), RADIUS)
    with torch.no_grad():
        crown, intervals = tool.crown(box).concretize(), tool.ibp(box)
    width = crown.upper - crown.lower
    assert (width < (intervals.upper - intervals.lower) / 2).all()
    generator = torch.Generator().manual_seed(1259)
    for image in range(2):
        away = 2 * torch.rand(500, 1, 12, 12, generator=generator, dtype=torch.float64) - 1
        points = torch.cat([away, away.sign(), *worst_corners(model, images[image : image + 1])])
        y = model(images[image] + RADIUS * points).detach()
        assert (y >= crown.lower[image]).all()
        assert (y <= crown.upper[image]).all()
        assert (y.amax(0) - y.amin(0) > width[image] / 2).all(), "bounds of something else"


def worst_corners(model: nn.Module, image: Tensor) -> list[Tensor]:
    """Where each score is largest and smallest, if the network were linear."""
    x = image.clone().requires_grad_()
    slopes = [torch.autograd.grad(score, x, retain_graph=True)[0] for score in model(x)[0]]
    return [turn * slope.sign() for slope in slopes for turn in (1, -1)]


def test_bounds_of_a_linear_network_are_reached(images: Tensor) -> None:
    model = nn.Sequential(cnn()[0], nn.Flatten(), nn.Linear(4 * 6 * 6, 3).double())
    tool = BoundModelFactory().build(simplified(model, images))
    found = tool.crown(HyperRectangle.from_eps(images.flatten(1), RADIUS)).concretize()
    for image in range(2):
        corners = torch.cat(worst_corners(model, images[image : image + 1]))
        y = model(images[image] + RADIUS * corners)
        for reached, bound in ((y.amax(0), found.upper), (y.amin(0), found.lower)):
            torch.testing.assert_close(reached, bound[image], rtol=0, atol=1e-12)
