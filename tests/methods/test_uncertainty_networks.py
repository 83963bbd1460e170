"""Whole networks with random weights: which layers, what stays, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import convfc
from convfc.errors import ArgumentError, NothingToConvert, UnsupportedLayer, UnsupportedModel
from convfc.methods import uncertainty
from convfc.methods.uncertainty import (
    ConcreteDropoutLinear,
    DropoutLinear,
    GaussianLinear,
    RandomLinear,
)

pytestmark = pytest.mark.usefixtures("one_thread", "seed_zero")


def lenet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 4 * 4, 8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip


X = (2, 1, 16, 16)


def kinds(model: nn.Module) -> list[str]:
    return [name for name, part in model.named_modules() if isinstance(part, RandomLinear)]


CLASSES = {"dropout": DropoutLinear, "concrete": ConcreteDropoutLinear, "gaussian": GaussianLinear}


@pytest.mark.parametrize(("method", "cls"), CLASSES.items(), ids=CLASSES)
def test_every_conv_and_fc_layer_gets_a_random_weight(method: Any, cls: type[nn.Module]):
    cnn = lenet()
    before = copy.deepcopy(cnn.state_dict())
    options = {} if method != "dropout" else {"drop": "taps"}
    bayes = uncertainty.to_bayesian(cnn, method, **options)
    assert kinds(bayes) == ["0.fc", "3.fc.0", "3.fc.1", "6", "8"]
    assert all(type(bayes.get_submodule(name)) is cls for name in kinds(bayes))
    x = torch.randn(*X)
    assert not torch.equal(bayes.train()(x), bayes(x))
    # In evaluation mode it is the FC form of the given network; the given one is as it was.
    certificate = convfc.verify(cnn, bayes.eval(), x)
    assert [layer.name for layer in certificate.layers] == ["0", "3"]
    assert all(layer.holds for layer in certificate.layers), str(certificate)
    assert all(output.holds for output in certificate.network.outputs), str(certificate)
    assert type(cnn[0]) is nn.Conv2d
    assert all(torch.equal(value, before[name]) for name, value in cnn.state_dict().items())


def test_where_chooses_and_kernels_of_the_last_layer_are_the_outputs_and_stay():
    assert kinds(uncertainty.to_bayesian(lenet(), "dropout")) == ["0.fc", "3.fc.0", "3.fc.1", "6"]
    concrete = uncertainty.to_bayesian(lenet(), "concrete", drop="kernels")
    assert "8" not in kinds(concrete)
    assert "8" in kinds(uncertainty.to_bayesian(lenet(), "dropout", where="*"))
    chosen = uncertainty.to_bayesian(lenet(), "gaussian", where=["3", "8"])
    assert kinds(chosen) == ["3.fc.0", "3.fc.1", "8"]


def test_a_network_in_patch_form_and_bare_layers_are_taken_as_they_are():
    fc = convfc.to_fc(lenet())
    bayes = uncertainty.to_bayesian(fc, "gaussian")
    assert torch.equal(bayes[0].fc.weight_mean, fc[0].fc.weight)
    assert type(fc[0].fc) is nn.Linear
    assert kinds(uncertainty.to_bayesian(nn.Conv1d(2, 3, 3), "gaussian")) == ["fc"]
    assert isinstance(uncertainty.to_bayesian(nn.Linear(2, 3), "gaussian"), GaussianLinear)


def test_a_resnet_trains_a_step_and_comes_home():
    block = torchvision.models.resnet.BasicBlock
    resnet = torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=5).eval()
    bayes = uncertainty.to_bayesian(resnet, "gaussian", initial_std=1e-3)
    assert len(kinds(bayes)) == 13
    x, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 3])
    optimizer = torch.optim.SGD(bayes.parameters(), lr=1e-3)
    loss = nn.functional.cross_entropy(bayes.train()(x), labels) + uncertainty.kl(bayes) / 1e9
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in bayes.parameters())
    optimizer.step()
    drawn = uncertainty.sample(bayes.eval(), seed=1)
    back = convfc.to_conv(drawn)
    assert {type(part) for part in back.modules()} == {type(part) for part in resnet.modules()}
    certificate = convfc.verify(back, drawn, x)
    assert certificate.holds, str(certificate)


def test_draws_differ_by_seed_and_leave_the_generator_alone():
    bayes = uncertainty.to_bayesian(lenet(), "gaussian")
    state = torch.get_rng_state()
    one, again, other = (uncertainty.sample(bayes, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one[0].fc.weight, again[0].fc.weight)
    assert not torch.equal(one[0].fc.weight, other[0].fc.weight)
    assert not list(filter(lambda part: isinstance(part, RandomLinear), one.modules()))


@pytest.mark.parametrize("method", ["concrete", "gaussian"])
def test_the_mean_is_the_network_itself(method: Any):
    cnn = lenet()
    home = convfc.to_conv(uncertainty.mean_network(uncertainty.to_bayesian(cnn, method)))
    assert all(torch.equal(home.state_dict()[name], v) for name, v in cnn.state_dict().items())


def test_frozen_layers_stay_frozen():
    cnn = lenet()
    cnn[0].requires_grad_(requires_grad=False)
    bayes = uncertainty.to_bayesian(cnn, "gaussian")
    assert not bayes[0].fc.weight_mean.requires_grad
    assert not bayes[0].fc.weight_rho.requires_grad
    assert bayes[6].weight_rho.requires_grad
    assert not uncertainty.sample(bayes)[0].fc.weight.requires_grad


@pytest.mark.parametrize("method", ["dropout", "concrete", "gaussian"])
def test_state_dicts_go_from_one_copy_to_another(method: Any):
    first, second = (uncertainty.to_bayesian(lenet(), method) for _ in range(2))
    second.load_state_dict(first.state_dict())
    x = torch.randn(*X)
    torch.manual_seed(5)
    y = first.train()(x)
    torch.manual_seed(5)
    assert torch.equal(second.train()(x), y)


def test_dtypes_and_unbatched_inputs():
    bayes = uncertainty.to_bayesian(lenet().double(), "concrete").train()
    assert bayes(torch.randn(X, dtype=torch.float64)).dtype == torch.float64
    layer = uncertainty.to_bayesian(nn.Conv2d(1, 4, 5).bfloat16(), "gaussian", per="image").train()
    assert layer(torch.randn(1, 16, 16, dtype=torch.bfloat16)).shape == (4, 12, 12)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


def test_a_weight_of_two_layers_is_refused():
    with pytest.raises(UnsupportedLayer, match=r"^one: its weight is also a parameter of two "
                       r"\(Linear\): two layers would draw two weights.*untie them"):  # fmt: skip
        uncertainty.to_bayesian(Tied(), "gaussian")


def test_what_a_tool_left_is_refused():
    fc = convfc.to_fc(lenet())
    fc[0].fc = nn.Sequential(nn.Linear(25, 2), nn.Linear(2, 4))
    text = (
        r"^0: .*its FC part is not an nn.Linear.*got Sequential. Remedy: take the model back first"
    )
    with pytest.raises(UnsupportedLayer, match=text):
        uncertainty.to_bayesian(fc, "gaussian")
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(UnsupportedLayer, match=r"^0: its weight cannot be made random: its weight "
                       r"is computed by a parametrization"):  # fmt: skip
        uncertainty.to_bayesian(model, "gaussian")


def test_no_such_method_option_or_layer():
    with pytest.raises(ArgumentError, match=r"gaussian has no option rate; expected some of prior, "
                       r"initial_std, per"):  # fmt: skip
        uncertainty.to_bayesian(lenet(), "gaussian", rate=0.5)
    with pytest.raises(NothingToConvert, match=r"where: no layer is chosen"):
        uncertainty.to_bayesian(lenet(), "gaussian", where="layer9")
    with pytest.raises(NothingToConvert, match=r"model: no layer is chosen.*before the last one"):
        uncertainty.to_bayesian(nn.Sequential(nn.Linear(3, 3)), "dropout")
    with pytest.raises(UnsupportedModel):
        uncertainty.to_bayesian("model", "dropout")
    for verb in (uncertainty.kl, uncertainty.sample, uncertainty.mean_network,
                 uncertainty.learned_rates):  # fmt: skip
        with pytest.raises(NothingToConvert, match=r"Sequential: the network has no random layer"):
            verb(lenet())
