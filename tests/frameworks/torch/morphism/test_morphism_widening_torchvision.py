"""torchvision's networks with wider layers: the same function, at every kind of place."""

from __future__ import annotations

import functools

import pytest
import torch
from morphism_models import trained
from torch import Tensor, nn
from torchvision import models

from convfc.errors import UnsupportedLayer, UnsupportedModel
from convfc.methods.morphism import widen

pytestmark = pytest.mark.usefixtures("one_thread")

# Input sizes, and layers with the number that follows 8 channels more and all that make its units.
NETWORKS: dict[str, tuple[tuple[int, ...], dict[str, set[str]]]] = {
    "resnet18": (
        (2, 3, 32, 32),
        {
            "conv1": {"conv1", "layer1.0.conv2", "layer1.1.conv2"},
            "layer1.0.conv1": {"layer1.0.conv1"},
            "layer2.0.downsample.0": {"layer2.0.downsample.0", "layer2.0.conv2", "layer2.1.conv2"},
        },
    ),
    "vgg11_bn": (
        (1, 3, 32, 32),
        {
            "features.0": {"features.0"},
            "features.25": {"features.25"},
            "classifier.0": {"classifier.0"},
        },
    ),
    "mobilenet_v3_small": (
        (2, 3, 64, 64),
        {
            "features.1.block.1.fc1": {"features.1.block.1.fc1"},
            "features.2.block.0.0": {"features.2.block.0.0", "features.2.block.1.0"},
            "features.2.block.1.0": {"features.2.block.0.0", "features.2.block.1.0"},
            "features.4.block.2.fc2": {
                "features.4.block.0.0",
                "features.4.block.1.0",
                "features.4.block.2.fc2",
            },
        },
    ),
    "densenet121": (
        (1, 3, 32, 32),
        {"features.denseblock3.denselayer9.conv2": {"features.denseblock3.denselayer9.conv2"}},
    ),
    "squeezenet1_1": ((1, 3, 32, 32), {"features.3.expand3x3": {"features.3.expand3x3"}}),
    "googlenet": ((1, 3, 32, 32), {"inception3a.branch4.1.conv": {"inception3a.branch4.1.conv"}}),
    "efficientnet_b0": (
        (1, 3, 32, 32),
        {
            "features.2.1.block.3.0": {"features.2.0.block.3.0", "features.2.1.block.3.0"},
        },
    ),
}
CASES = [(name, layer) for name, (_, layers) in NETWORKS.items() for layer in layers]


@functools.cache
def build(name: str) -> nn.Module:
    """A network with random numbers, so that its output depends on all of its input."""
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with torch.random.fork_rng():
        model = models.get_model(name, weights=None, **options)
    if name == "vgg11_bn":  # 120 million weights do nothing for this
        model.classifier = nn.Sequential(nn.Linear(512 * 49, 16), nn.ReLU(), nn.Linear(16, 10))
    return trained(model)


def images(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("split", ["equal", "random"])
@pytest.mark.parametrize(("name", "layer"), CASES)
def test_a_wider_layer_is_the_same_function(name: str, layer: str, split: str):
    shape, layers = NETWORKS[name]
    model, x = build(name), images(shape)
    old = model.get_submodule(layer)
    channels = old.weight.shape[0]
    morph = widen(model, layer, width=channels + 8, example=x, split=split)
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


def test_new_units_without_outgoing_weights():
    for name in ("resnet18", "mobilenet_v3_small"):
        shape, layers = NETWORKS[name]
        for layer in layers:
            morph = widen(build(name), layer, factor=1.5, example=images(shape), how="zero")
            assert morph.certificate.holds, str(morph.certificate)


def test_a_reader_that_is_forgotten_is_seen():
    """The networks depend on each of their layers, so the certificate's silence means something."""
    model, x = build("resnet18"), images(NETWORKS["resnet18"][0])
    morph = widen(model, "layer2.0.downsample.0", width=136, example=x)
    with torch.no_grad():
        reader = morph.model.layer3[0].downsample[0].weight
        clean = morph.model(x)
        reader[:, -1] *= 2
    assert not torch.equal(morph.model(x), clean)


def test_a_plain_subclass_of_a_layer_is_widened_as_the_layer_is():
    """r3d_18 has CONV layers of a class of torchvision's own, which adds no forward."""
    with torch.random.fork_rng():
        model = trained(models.video.r3d_18(weights=None))
    assert type(model.layer1[0].conv1[0]) is not nn.Conv3d
    x = images((1, 3, 4, 16, 16))
    for layer in ("layer1.0.conv1.0", "layer2.0.conv2.0"):
        filters = model.get_submodule(layer).out_channels
        morph = widen(model, layer, width=filters + 8, example=x)
        assert morph.certificate.holds, str(morph.certificate)
        new = morph.model.get_submodule(layer)
        assert type(new) is type(model.get_submodule(layer))
        assert new.out_channels == filters + 8


def test_what_torchvision_has_that_cannot_be_widened():
    with pytest.raises(UnsupportedLayer, match=r"fc: .* the output of the model"):
        widen(build("resnet18"), "fc", width=1200, example=images((1, 3, 32, 32)))
    with torch.random.fork_rng():
        shuffle = models.shufflenet_v2_x0_5(weights=None)
    x = images((2, 3, 64, 64))
    with pytest.raises(UnsupportedLayer, match=r"branch1\.2: .*view\(\) at stage2\.0: it divides"):
        widen(shuffle, "stage2.0.branch1.2", width=32, example=x)
    assert widen(shuffle, "conv1.0", width=32, example=x).certificate.holds
    with torch.random.fork_rng():
        inception = models.googlenet(weights=None, aux_logits=True, init_weights=False)
    with pytest.raises(UnsupportedModel, match=r"something else in training.*aux_logits=False"):
        widen(inception, "conv1.conv", width=72, example=images((2, 3, 64, 64)))
