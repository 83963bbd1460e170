"""Wider layers in networks that hypothesis draws, and in torchvision's."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morphism_models import trained
from torch import Tensor, nn
from torchvision import models

from convfc.methods.morphism import widen

pytestmark = pytest.mark.usefixtures("one_thread")

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
SIZE = {1: (5,), 2: (5, 4), 3: (3, 4, 3)}
CHANNELS = 2
MODES = ["zeros", "reflect", "replicate", "circular"]


class Drawn(nn.Module):
    """Values of one spatial size: each step makes a new one of earlier ones, the last is read."""

    def __init__(self, steps: list[tuple[str, nn.Module | None, list[int]]], head: list[nn.Module]):
        super().__init__()
        self.wiring = [(kind, sources) for kind, _, sources in steps]
        self.parts = nn.ModuleList(nn.Identity() if part is None else part for _, part, _ in steps)
        self.head = nn.Sequential(*head)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for (kind, sources), part in zip(self.wiring, self.parts, strict=True):
            given = [values[source] for source in sources]
            if kind == "add":
                values.append(given[0] + given[1])
            elif kind == "cat":
                values.append(torch.cat(given, dim=1))
            else:
                values.append(part(given[0]))
        y: Tensor = self.head(values[-1])
        return y


class Architect:
    """Puts a network together from what hypothesis draws."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.ndim = draw(st.integers(1, 3))
        self.channels = [CHANNELS]
        self.plain = [False]  # whether a value's channels are one space, one per unit
        self.steps: list[tuple[str, nn.Module | None, list[int]]] = []
        self.names: list[str] = []

    def add(self, kind: str, part: nn.Module | None, sources: list[int], width: int, plain: bool):
        self.steps.append((kind, part, sources))
        self.channels.append(width)
        self.plain.append(plain)

    def conv(self, source: int, width: int, groups: int = 1) -> None:
        """A CONV layer, transposed or not, that keeps the size."""
        kernel, dilation = self.draw(st.sampled_from([1, 3])), self.draw(st.integers(1, 2))
        options: dict[str, Any] = {
            "groups": groups,
            "bias": self.draw(st.booleans()),
            "dilation": dilation,
            "padding": (kernel // 2) * dilation,
        }
        cls = self.draw(st.sampled_from([CONV, TRANSPOSED]))[self.ndim]
        if cls is CONV[self.ndim]:
            options["padding_mode"] = self.draw(st.sampled_from(MODES))
        self.names.append(f"parts.{len(self.steps)}")
        part = cls(self.channels[source], width, kernel, **options)
        self.add("part", part, [source], width, True)

    def depthwise(self, source: int) -> None:
        width, times = self.channels[source], self.draw(st.integers(1, 2))
        if self.plain[source]:
            self.names.append(f"parts.{len(self.steps)}")
        cls = self.draw(st.sampled_from([CONV, TRANSPOSED]))[self.ndim]
        part = cls(width, width * times, 3, padding=1, groups=width)
        self.add("part", part, [source], width * times, self.plain[source] and times == 1)

    def step(self) -> None:
        source = len(self.channels) - 1
        width, plain = self.channels[source], self.plain[source]
        kind = self.draw(
            st.sampled_from(["conv", "groups", "depthwise", "act", "add", "cat", "two"])
        )
        if kind == "groups" and plain and width % 2 == 0 and width > 2:
            self.conv(source, 2 * self.draw(st.integers(1, 2)), groups=2)
        elif kind == "depthwise" and width > 1:
            self.depthwise(source)
        elif kind == "act":
            acts = [nn.ReLU(), nn.PReLU(width), POOL[self.ndim](3, 1, 1), NORM[self.ndim](width)]
            self.add("part", self.draw(st.sampled_from(acts)), [source], width, plain)
        elif kind == "add" and plain:
            self.conv(source, width)
            self.add("add", None, [source, source + 1], width, True)
        elif kind == "cat":
            other = self.draw(st.integers(1, source))
            self.add("cat", None, [other, source], width + self.channels[other], False)
        elif kind == "two":
            self.conv(source, 3)
            self.conv(source, 3)
            self.add("add", None, [source + 1, source + 2], 3, True)
        else:
            self.conv(source, self.draw(st.integers(1, 4)))


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...], str]:
    """A network, the shape of its input, and one of its layers."""
    architect = Architect(draw)
    architect.conv(0, draw(st.integers(1, 4)))
    for _ in range(draw(st.integers(1, 4))):
        architect.step()
    size = SIZE[architect.ndim]
    hidden = draw(st.integers(1, 4))
    features = architect.channels[-1] * math.prod(size)
    head = [nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 2)]
    name = draw(st.sampled_from([*architect.names, "head.1"]))
    return Drawn(architect.steps, head), (2, CHANNELS, *size), name


@given(
    drawn=networks(),
    factor=st.sampled_from([1, 1.25, 2, 3]),
    way=st.sampled_from([{}, {"split": "random"}, {"how": "zero"}]),
    seed=st.integers(0, 9),
)
def test_any_layer_of_any_network(
    drawn: tuple[nn.Module, tuple[int, ...], str], factor: float, way: dict[str, Any], seed: int
):
    model, shape, name = drawn
    model = trained(model, seed)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    old = filters(model.get_submodule(name))
    morph = widen(model, name, factor=factor, example=x, seed=seed, **way)
    assert filters(morph.model.get_submodule(name)) >= factor * old
    assert morph.certificate.holds, str(morph.certificate)
    for layer in morph.certificate.layers:
        assert layer.own["output"].ratio is not None
        normalised = isinstance(model.get_submodule(layer.name), NORM[len(shape) - 2])
        assert layer.exact.identical is (None if normalised else True)


def filters(layer: nn.Module) -> int:
    return getattr(layer, "out_channels", None) or layer.out_features


# torchvision's networks

# Input sizes, and layers with the number that follows 8 channels more and all that make its units.
NETWORKS: dict[str, tuple[tuple[int, ...], dict[str, set[str]]]] = {
    "resnet18": (
        (2, 3, 32, 32),
        {
            "layer1.0.conv1": {"layer1.0.conv1"},
            "layer2.0.downsample.0": {"layer2.0.downsample.0", "layer2.0.conv2", "layer2.1.conv2"},
        },
    ),
    "mobilenet_v3_small": (
        (2, 3, 64, 64),
        {
            "features.1.block.1.fc1": {"features.1.block.1.fc1"},
            "features.2.block.0.0": {"features.2.block.0.0", "features.2.block.1.0"},
            "features.4.block.2.fc2": {
                "features.4.block.0.0",
                "features.4.block.1.0",
                "features.4.block.2.fc2",
            },
        },
    ),
    "squeezenet1_1": ((1, 3, 32, 32), {"features.3.expand3x3": {"features.3.expand3x3"}}),
    "googlenet": ((1, 3, 32, 32), {"inception3a.branch4.1.conv": {"inception3a.branch4.1.conv"}}),
}
CASES = [(name, layer) for name, (_, layers) in NETWORKS.items() for layer in layers]


@functools.cache
def build(name: str) -> nn.Module:
    """A network with random numbers, so that its output depends on all of its input."""
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with torch.random.fork_rng():
        model = models.get_model(name, weights=None, **options)
    return trained(model)


def images(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("name", "layer"), CASES)
def test_a_wider_layer_is_the_same_function(name: str, layer: str):
    shape, layers = NETWORKS[name]
    model, x = build(name), images(shape)
    old = model.get_submodule(layer)
    channels = old.weight.shape[0]
    morph = widen(model, layer, width=channels + 8, example=x, split="random")
    assert morph.certificate.holds, str(morph.certificate)
    grown = {
        place: part
        for place, part in morph.model.named_modules()
        if isinstance(part, (nn.Conv2d, nn.Linear))
        and part.weight.shape[0] > model.get_submodule(place).weight.shape[0]
    }
    assert set(grown) == layers[layer]
    assert {part.weight.shape[0] for part in grown.values()} == {channels + 8}
    assert {certificate.name for certificate in morph.certificate.layers} == set(morph.changed)
