"""Muon, an optimizer for matrices only, trains every CONV layer of a ResNet in weight form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon
from torchvision.models.resnet import BasicBlock, ResNet

import convfc

LAYERS = 12
STEPS = 3


@pytest.fixture
def cnn() -> nn.Module:
    """Return a ResNet for ten classes, with one block where a resnet18 has two."""
    torch.manual_seed(1712)
    return network()


def network() -> nn.Module:
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1259)
    return torch.randn(10, 3, 32, 32, generator=generator), torch.arange(10)


def conv_layers(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """What Muon can train, but for the classifier, which its authors leave to AdamW."""
    return [p for name, p in model.named_parameters() if p.dim() == 2 and name != "fc.weight"]


def as_rows(weight: Tensor) -> Tensor:
    """A CONV weight as FC weight (f, k)."""
    return weight.flatten(1).clone()


def backward(model: nn.Module) -> Tensor:
    images, labels = batch()
    model.zero_grad()
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    return loss.detach()


def test_muon_refuses_the_cnn(cnn: nn.Module) -> None:
    weights = [layer.weight for layer in conv_layers(cnn).values()]
    refusal = r"Muon only supports 2D parameters .* torch\.Size\(\[64, 3, 7, 7\]\)"
    with pytest.raises(ValueError, match=refusal):
        Muon(weights)
    assert matrices(cnn) == []


def test_muon_steps_the_fc_matrix_of_every_conv_layer(cnn: nn.Module) -> None:
    fc = convfc.to_fc(cnn, form="weight")
    backward(cnn)
    backward(fc)
    ours = matrices(fc)
    by_hand = [nn.Parameter(as_rows(layer.weight.detach())) for layer in conv_layers(cnn).values()]
    for parameter, layer in zip(by_hand, conv_layers(cnn).values(), strict=True):
        parameter.grad = as_rows(layer.weight.grad)
    assert len(ours) == len(by_hand) == LAYERS
    Muon(ours, lr=0.02).step()
    Muon(by_hand, lr=0.02).step()
    for name, got, expected in zip(conv_layers(cnn), ours, by_hand, strict=True):
        assert torch.equal(got, expected), name


def test_muon_trains_the_weight_form_and_a_resnet_comes_back(cnn: nn.Module) -> None:
    fc = convfc.to_fc(cnn, form="weight")
    on_muon = matrices(fc)
    taken = {id(p) for p in on_muon}
    assert {id(m.parametrizations.weight.original) for m in conv_layers(fc).values()} == taken
    rest = [p for p in fc.parameters() if id(p) not in taken]
    assert all(p.dim() == 1 or p is fc.fc.weight for p in rest)
    optimizers = Muon(on_muon, lr=0.02), AdamW(rest, lr=1e-3)

    losses = []
    for _ in range(STEPS):
        losses.append(backward(fc))
        for optimizer in optimizers:
            optimizer.step()
    losses.append(backward(fc))
    assert losses[-1] < losses[0]

    back = convfc.to_conv(fc)
    assert {name: type(m) for name, m in back.named_modules()} == {
        name: type(m) for name, m in cnn.named_modules()
    }
    for name, layer in conv_layers(back).items():
        assert not torch.equal(layer.weight, cnn.get_submodule(name).weight), name
    images, _ = batch()
    assert torch.equal(back.eval()(images), fc.eval()(images))
    # It is an ordinary checkpoint.
    fresh = network()
    fresh.load_state_dict(back.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(images), fc(images))
