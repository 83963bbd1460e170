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


# A CNN's checkpoint.


class Grown(nn.Module):
    """Layers of every kind of FC child: one, one per group, transposed, without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False)
        self.deep = nn.Sequential(nn.Conv2d(6, 6, 3, groups=3), nn.ReLU(), nn.Flatten())
        self.last = nn.Linear(6 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.deep(self.up(self.norm(self.first(x)))))


OPTIONS = {"dropout": {"drop": "taps"}, "concrete": {"rate": 0.3}, "gaussian": {}}


@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
@pytest.mark.parametrize("method", OPTIONS)
def test_a_checkpoint_of_the_cnn_is_the_means_and_the_rest_stays(method: Any, assign: bool):
    """The CNN's names and shapes, strict; the way back has the checkpoint's bits."""
    trained = Grown().eval()
    bayes = uncertainty.to_bayesian(Grown().eval(), method, **OPTIONS[method])
    with torch.no_grad():
        for name, p in bayes.named_parameters():
            if name.endswith(("rho", "logit")):
                p.copy_(torch.randn_like(p))
    unknown = {
        name: tensor.clone()
        for name, tensor in bayes.state_dict().items()
        if name.endswith(("rho", "logit"))
    }
    assert bool(unknown) == (method != "dropout")
    checkpoint = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    assert checkpoint["up.weight"].shape == (4, 3, 3, 3)
    found = bayes.load_state_dict(checkpoint, assign=assign)
    assert (found.missing_keys, found.unexpected_keys) == ([], [])
    home = convfc.to_conv(uncertainty.mean_network(bayes)).state_dict()
    assert home.keys() == checkpoint.keys()
    assert all(torch.equal(home[name], tensor) for name, tensor in checkpoint.items())
    after = bayes.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in unknown.items())
    assert set(checkpoint) == set(trained.state_dict()), "what was given is as it was"
    # What is loaded so is what to_bayesian makes of the trained network.
    x = torch.randn(2, 2, 6, 6)
    made = uncertainty.to_bayesian(trained, method, **OPTIONS[method])
    made.load_state_dict(unknown, strict=False)
    draws = []
    for model in (bayes, made):
        torch.manual_seed(3)
        draws.append(model.train()(x))
    assert torch.equal(*draws)
    other = uncertainty.to_bayesian(Grown(), method, **OPTIONS[method])
    other.load_state_dict(bayes.state_dict())  # and its own checkpoint goes on to load
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in after.items())


def test_layers_that_are_not_random_are_loaded_with_the_others():
    trained = Grown()
    bayes = uncertainty.to_bayesian(Grown(), "gaussian", where=["deep.0"])
    bayes.load_state_dict(trained.state_dict())
    home = convfc.to_conv(uncertainty.mean_network(bayes)).state_dict()
    assert all(torch.equal(home[name], t) for name, t in trained.state_dict().items())
    alone = uncertainty.to_bayesian(nn.Linear(3, 2), "gaussian")
    alone.load_state_dict(linear := nn.Linear(3, 2).state_dict())
    assert torch.equal(alone.weight_mean, linear["weight"])
    assert torch.equal(alone.bias_mean, linear["bias"])


@pytest.mark.parametrize("method", OPTIONS)
def test_what_a_checkpoint_lacks_has_too_much_or_in_another_shape_is_pytorchs_error(method: Any):
    bayes = uncertainty.to_bayesian(Grown(), method, **OPTIONS[method])
    given = Grown().state_dict()
    del given["first.bias"], given["last.weight"]
    given |= {"nobody": torch.zeros(1), "up.bias": torch.zeros(6)}
    given["deep.0.weight"] = torch.zeros(6, 6, 3, 3)
    before = {name: tensor.clone() for name, tensor in bayes.state_dict().items()}
    with pytest.raises(RuntimeError) as error:
        bayes.load_state_dict(given)
    text = str(error.value)
    mean = "{}_mean" if method == "gaussian" else "linear.{}"
    for name in ("first.fc." + mean.format("bias"), "last." + mean.format("weight")):
        assert f'"{name}"' in text.split("Missing")[1].split("Unexpected", maxsplit=1)[0]
    for name in ("nobody", "up.bias"):
        assert f'"{name}"' in text.split("Unexpected")[1]
    assert "size mismatch for deep.0.weight: copying a param with shape torch.Size([6, 6" in text
    assert text.count('"') == 2 * 4, "and nothing else"
    changed = [name for name, t in bayes.state_dict().items() if not torch.equal(t, before[name])]
    assert not [name for name in changed if name.startswith("deep.0.fc.0." + mean.format("weight"))]
    found = bayes.load_state_dict({"first.bias": torch.ones(4)}, strict=False)
    assert "first.fc." + mean.format("weight") in found.missing_keys
    assert bayes.first.fc.mean()[1].eq(1).all()
    # Both: its own state counts, and the other weight is one too many.
    both = bayes.state_dict() | {"last.weight": torch.zeros(3, 216)}
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "last.weight"'):
        bayes.load_state_dict(both)


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
