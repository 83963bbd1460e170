"""Wider layers in torchvision's networks."""

from __future__ import annotations

import functools

import pytest
import torch
from morphism_models import assert_proven, trained
from torch import Tensor, nn
from torchvision import models

from convfc.methods.morphism import widen

pytestmark = pytest.mark.usefixtures("one_thread")

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
}
CASES = [(name, layer) for name, (_, layers) in NETWORKS.items() for layer in layers]


@functools.cache
def build(name: str) -> nn.Module:
    """A network with random numbers, so that its output depends on all of its input."""
    with torch.random.fork_rng():
        model = models.get_model(name, weights=None)
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


@pytest.mark.parametrize(
    ("layer", "more"),
    [("layer1.0.conv1", set()), ("conv1", {"layer1.0.conv2", "layer1.1.conv2"})],
)
def test_a_resnet_with_group_normalisation_by_a_factor(layer: str, more: set[str]):
    make = functools.partial(models.resnet18, norm_layer=functools.partial(nn.GroupNorm, 8))
    with torch.random.fork_rng():
        model = trained(make())
    morph = widen(model, layer, factor=2, example=images((2, 3, 32, 32)))
    assert_proven(morph)
    for name, part in morph.model.named_modules():
        if isinstance(part, nn.Conv2d):
            factor = 2 if name in {layer, *more} else 1
            assert part.out_channels == factor * model.get_submodule(name).out_channels
        elif isinstance(part, nn.GroupNorm):
            assert part.num_groups == 8
