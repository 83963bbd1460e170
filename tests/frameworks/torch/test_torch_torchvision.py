"""torchvision's networks: to FC layers, proven equal, and back, bit for bit."""

from __future__ import annotations

import pytest
import torch
from networks import assert_same_state, trained
from torch import nn
from torchvision import models

import convfc

pytestmark = pytest.mark.usefixtures("no_network")

# Each network with the input that it gets and the number of its CONV layers.
NETWORKS = {
    "resnet18": ((2, 3, 64, 64), 20),
    "vgg11_bn": ((1, 3, 32, 32), 8),
    "mobilenet_v3_small": ((2, 3, 64, 64), 52),
    "densenet121": ((1, 3, 64, 64), 120),
    "convnext_tiny": ((1, 3, 32, 32), 22),
    "efficientnet_b0": ((1, 3, 32, 32), 81),
    "r3d_18": ((1, 3, 4, 16, 16), 20),
    "fcn_resnet50": ((1, 3, 32, 32), 55),
    "vit_b_16": ((1, 3, 224, 224), 1),
}
# The six that `make test` runs have between them residual blocks, layers of a subclass in 3-D,
# depthwise ones with squeeze and excitation, dilated ones, patch embeddings, and every activation.
IN_EVERY_RUN = {
    ("resnet18", "patch"),
    ("mobilenet_v3_small", "patch"),
    ("convnext_tiny", "weight"),
    ("r3d_18", "patch"),
    ("fcn_resnet50", "weight"),
    ("vit_b_16", "patch"),
}


def build(name: str) -> nn.Module:
    """Return a network with random weights and BatchNorms that look trained."""
    torch.manual_seed(1712)
    options = {"weights_backbone": None} if name.startswith("fcn") else {}
    model = models.get_model(name, weights=None, **options)
    if name == "vgg11_bn":
        model.classifier = nn.Linear(512 * 7 * 7, 10)  # 120 million weights do nothing for this,
    if name == "vit_b_16":
        model.encoder.layers = model.encoder.layers[:1]  # nor do 11 blocks more
    return trained(model)


def convs(model: nn.Module) -> set[str]:
    """The names of all CONV layers, PyTorch's and subclasses of them."""
    kind = nn.modules.conv._ConvNd
    return {name for name, part in model.named_modules() if isinstance(part, kind)}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(*one, marks=() if one in IN_EVERY_RUN else pytest.mark.slow)
        for one in ((name, form) for name in NETWORKS for form in ("patch", "weight"))
    ],
)
def test_a_network_becomes_fc_layers_is_proven_equal_and_comes_back_bit_for_bit(
    name: str, form: str
) -> None:
    sizes, count = NETWORKS[name]
    before = build(name)
    assert len(convs(before)) == count

    fc = convfc.to_fc(before, form=form)
    x = torch.randn(sizes, generator=torch.Generator().manual_seed(1259))
    certificate = convfc.verify(before, fc, x)
    assert certificate.holds, str(certificate)
    assert {layer.name for layer in certificate.layers} == convs(before)
    assert {layer.forms for layer in certificate.layers} == {("native", form)}

    back = convfc.to_conv(fc)
    assert [*map(type, back.modules())] == [*map(type, before.modules())]
    assert_same_state(back, before)

    # Checkpoints go both ways, strictly.
    before.load_state_dict({key: value + 1 for key, value in before.state_dict().items()})
    fc.load_state_dict(before.state_dict(), strict=True)
    assert_same_state(fc, before)
    back.load_state_dict(fc.state_dict(), strict=True)
    assert_same_state(back, before)
