"""An optimizer's state goes with the weights: training goes on in the other form as in the first.

Optimizers that treat every number alone are the judges: from equal states and equal gradients they
make equal weights, to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from conv_cases import GROUPED, SMALL, ConvCase
from networks import assert_same_state, net, through_a_file
from torch import nn
from torch_fixtures import in_form

import convfc
from convfc import convert_optimizer_state
from convfc.errors import UnsupportedModel, UnsupportedOptimizer

Make = Callable[[Iterable[Any]], torch.optim.Optimizer]
optim = torch.optim


OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "sgd-momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "adamw-amsgrad": lambda p: optim.AdamW(p, lr=0.01, amsgrad=True),
    "adamax": optim.Adamax,
    "nadam": optim.NAdam,
    "radam": optim.RAdam,
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.01),
    "adadelta": optim.Adadelta,
    "asgd": optim.ASGD,
    "rprop": optim.Rprop,
}
adam = OPTIMIZERS["adam"]
FORMS = ("patch", "weight", "batched")


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 2, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2, groups=2), nn.Flatten(), nn.Linear(4 * 4 * 3, 3),
    ).double()  # fmt: skip


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        grad = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        parameter.grad = grad.to(parameter.dtype)


def stepped(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3
) -> torch.optim.Optimizer:
    for seed in range(steps):
        give_gradients(model, seed)
        optimizer.step()
    return optimizer


def give_same_gradients(one: nn.Module, other: nn.Module, seed: int = 10) -> None:
    """Draw gradients for one model, and lay them out for the other as its weights are."""
    give_gradients(one, seed)
    holds, takes = copy.deepcopy(one), copy.deepcopy(other)
    with torch.no_grad():
        for parameter, like in zip(holds.parameters(), one.parameters(), strict=True):
            parameter.copy_(like.grad)
    takes.load_state_dict(holds.state_dict())
    for parameter, gradient in zip(other.parameters(), takes.parameters(), strict=True):
        parameter.grad = gradient.detach()


def assert_both_step_alike(
    cnn: nn.Module, first: torch.optim.Optimizer, fc: nn.Module, second: torch.optim.Optimizer
) -> None:
    before = copy.deepcopy(cnn.state_dict())
    give_same_gradients(cnn, fc)
    first.step()
    second.step()
    assert_same_state(cnn, fc)
    assert not all(torch.equal(value, before[key]) for key, value in cnn.state_dict().items())


def goes_on(
    first: Any, one: nn.Module, other: nn.Module, make: Make = adam
) -> torch.optim.Optimizer:
    """Return an optimizer of the other model that has the state of the first one's."""
    second = make(other.parameters())
    second.load_state_dict(convert_optimizer_state(first, one, other))
    return second


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, form) for name in OPTIMIZERS for form in ("patch", "weight")] + [("adam", "batched")],
)
def test_the_next_step_is_the_same_to_the_bit_there_and_back(name: str, form: str) -> None:
    make, cnn = OPTIMIZERS[name], network()
    first = stepped(cnn, make(cnn.parameters()))
    first.load_state_dict(first.state_dict())  # which widens NAdam's float32 scalars
    fc = in_form(cnn, form, None)
    second = goes_on(first, cnn, fc, make)
    assert_both_step_alike(cnn, first, fc, second)
    back = convfc.to_conv(fc)
    third = goes_on(second, fc, back, make)
    assert_both_step_alike(back, third, fc, second)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", [*SMALL, *GROUPED], ids=str)
def test_every_layer(case: ConvCase, form: str) -> None:
    cnn = case.layer()
    first = stepped(cnn, adam(cnn.parameters()))
    fc = in_form(cnn, form, None)
    second = goes_on(first, cnn, fc)
    assert_both_step_alike(cnn, first, fc, second)
    returned = convert_optimizer_state(second, fc, cnn)
    assert list(returned["state"]) == list(range(len(list(cnn.parameters()))))
    for place, parameter in enumerate(cnn.parameters()):
        for key, value in first.state[parameter].items():
            assert torch.equal(returned["state"][place][key], value)


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_file_of_the_cnn_goes_on_in_the_other_form(form: str) -> None:
    cnn = network()
    first = stepped(cnn, adam(cnn.parameters()))
    kept = {"model": cnn.state_dict(), "optimizer": first.state_dict()}
    checkpoint = through_a_file(kept, weights_only=True)
    fresh = network()
    fc = in_form(fresh, form, None)
    fc.load_state_dict(checkpoint["model"])
    second = goes_on(checkpoint["optimizer"], fresh, fc)
    assert_both_step_alike(cnn, first, fc, second)


@pytest.mark.parametrize("form", FORMS)
def test_groups_of_parameters_stay_groups(form: str) -> None:
    """Without decay what has one axis, the layers with rates of their own, one layer frozen."""
    cnn = network()
    cnn[0].weight.requires_grad_(False)

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        return [
            {"params": [(n, p) for n, p in trained if p.dim() == 1], "weight_decay": 0.0},
            {"params": [(n, p) for n, p in trained if p.dim() > 1 and n[0] == "3"], "lr": 0.5},
            {"params": [(n, p) for n, p in trained if p.dim() > 1 and n[0] != "3"]},
        ]

    first = optim.AdamW(groups(cnn), lr=0.1, weight_decay=0.3)
    stepped(cnn, first)
    fc = in_form(cnn, form, None)
    for given in (first, first.state_dict()):
        state = convert_optimizer_state(given, cnn, fc)
        second = optim.AdamW(groups(fc))
        assert [g["param_names"] for g in state["param_groups"]] == [
            [name for name, _ in group["params"]] for group in groups(fc)
        ]
        second.load_state_dict(state)
        assert [g["lr"] for g in second.param_groups] == [0.1, 0.5, 0.1]
        assert [g["weight_decay"] for g in second.param_groups] == [0.0, 0.3, 0.3]
    assert_both_step_alike(cnn, first, fc, second)


def test_nothing_is_shared_with_the_first_optimizer() -> None:
    cnn = network().to(memory_format=torch.channels_last)
    first = optim.Adam(cnn.parameters(), lr=torch.tensor(0.1, dtype=torch.float64))
    stepped(cnn, first)
    back = convfc.to_conv(convfc.to_fc(cnn))
    before = copy.deepcopy(first.state_dict())
    state = convert_optimizer_state(first, cnn, back)
    for place, parameter in enumerate(back.parameters()):
        assert state["state"][place]["exp_avg"].stride() == parameter.stride()
        for value in state["state"][place].values():
            value.fill_(7)
    state["param_groups"][0]["lr"].fill_(7)
    for place, entry in first.state_dict()["state"].items():
        assert all(torch.equal(v, before["state"][place][k]) for k, v in entry.items())
    assert first.param_groups[0]["lr"] == 0.1


def test_moments_keep_their_own_dtype() -> None:
    cnn = nn.Conv2d(2, 4, 3, groups=2, dtype=torch.bfloat16)
    first = stepped(cnn, adam(cnn.parameters()))
    state = first.state_dict()
    for entry in state["state"].values():
        entry["exp_avg"] = entry["exp_avg"].double() + 1e-9
    found = convert_optimizer_state(state, cnn, fc := convfc.to_fc(cnn))
    back = convert_optimizer_state(found, fc, cnn)
    assert found["state"][0]["exp_avg"].dtype == torch.float64
    assert found["state"][0]["exp_avg_sq"].dtype == torch.bfloat16
    for place in (0, 1):
        assert torch.equal(back["state"][place]["exp_avg"], state["state"][place]["exp_avg"])


def test_shared_layers_and_shared_weights_have_one_state() -> None:
    one, two = nn.Conv1d(2, 2, 3), nn.Conv1d(2, 2, 3)
    two.weight = one.weight
    shared = net(lambda m, x: x, one=one, two=two, again=one)
    for form in ("patch", "weight"):
        cnn = copy.deepcopy(shared)
        first = stepped(cnn, adam(cnn.parameters()))
        fc = convfc.to_fc(cnn, form=form)
        assert len(list(fc.parameters())) == 3
        second = goes_on(first, cnn, fc)
        assert_both_step_alike(cnn, first, fc, second)


def test_a_head_that_became_a_conv_layer_goes_on() -> None:
    small = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3)).double()
    first = stepped(small, adam(small.parameters()))
    give_gradients(small, 10)
    x = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    wide = convfc.to_fully_convolutional(small, x)
    second = goes_on(first, small, wide)
    for one, other in zip(small.parameters(), wide.parameters(), strict=True):
        other.grad = one.grad.reshape(other.shape)
    first.step()
    second.step()
    for one, other in zip(small.parameters(), wide.parameters(), strict=True):
        assert torch.equal(one, other.reshape(one.shape))
    returned = convert_optimizer_state(second, wide, small)
    for place, parameter in enumerate(small.parameters()):
        assert torch.equal(returned["state"][place]["exp_avg"], first.state[parameter]["exp_avg"])


def test_an_optimizer_that_has_not_stepped_and_one_that_has_for_some() -> None:
    cnn = network()
    fc = convfc.to_fc(cnn)
    first = adam(cnn.parameters())
    assert convert_optimizer_state(first, cnn, fc)["state"] == {}
    give_gradients(cnn, 0)
    cnn[3].weight.grad = None
    first.step()
    second = goes_on(first, cnn, fc)
    named = {name: p for name, p in fc.named_parameters() if p in second.state}
    assert named.keys() == dict(fc.named_parameters()).keys() - {"3.fc.0.weight", "3.fc.1.weight"}


# ---------------------------------------------------------------------------------------- refused


def refused(
    optimizer: Any,
    before: Any,
    after: Any,
    text: str,
    error: type[Exception] = UnsupportedOptimizer,
) -> None:
    with pytest.raises(error, match=text):
        convert_optimizer_state(optimizer, before, after)


def grouped() -> tuple[nn.Module, nn.Module]:
    cnn = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    return cnn, convfc.to_fc(cnn)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (optim.Adafactor, r"row_var of 0\.weight: the optimizer keeps something else"),
        (
            optim.LBFGS,
            r"d of 0\.weight.*expected a tensor \(6, 2, 3, 3\), or a number; "
            r"got a Tensor \(114,\)",
        ),
    ],
    ids=["adafactor", "lbfgs"],
)
def test_a_state_that_does_not_move_as_weights_do(make: Make, text: str) -> None:
    cnn, fc = grouped()
    optimizer = make(cnn.parameters())
    give_gradients(cnn, 0)
    optimizer.step(lambda: torch.tensor(1.0))
    refused(optimizer, cnn, fc, text)


def test_factors_of_a_1x1_weight_which_have_its_shape() -> None:
    cnn = nn.Conv2d(4, 6, 1)
    optimizer = optim.Adafactor(cnn.parameters())
    stepped(cnn, optimizer)
    assert optimizer.state[cnn.weight]["row_var"].shape == cnn.weight.shape
    refused(optimizer, cnn, convfc.to_fc(cnn), r"row_var of the layer\.weight: .* begin with a new")


def test_groups_of_a_layer_that_were_trained_apart() -> None:
    cnn, fc = grouped()
    optimizer = adam(fc.parameters())
    give_gradients(fc, 0)
    fc[0].fc[1].weight.grad = None
    optimizer.step()
    refused(optimizer, fc, cnn, r"0\.weight: the groups of one layer have states of different kind")
    stepped(fc, optimizer, 1)
    refused(optimizer, fc, cnn, r"step of 0\.weight: .*different values.*got 2\.0, 1\.0")
    apart = adam([{"params": [p]} for p in fc.parameters()])
    refused(apart, fc, cnn, r"param_groups\[0\]: it holds only some .* 0\.weight consists of")


@pytest.mark.parametrize("form", ["unrolled", "simplified"])
def test_the_unrolled_form(form: str) -> None:
    cnn = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    example = torch.zeros(1, 1, 5, 5)
    after = in_form(cnn, form, example)
    text = "the unrolled form has a number per entry of a large matrix"
    refused(adam(cnn.parameters()), cnn, after, text)
    refused(adam(after.parameters()), after, cnn, text)


def test_models_that_are_not_one() -> None:
    cnn, fc = grouped()
    optimizer = adam(cnn.parameters())
    for other, text in (
        (nn.Sequential(nn.Conv2d(4, 8, 3, groups=2)), r"0: the layer has two sizes; expected \(6,"),
        (nn.Sequential(nn.Conv2d(2, 6, 3)), r"0: the layer has two sizes"),
        (nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False)), r"0: the layer has two sizes"),
        (nn.Sequential(nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2)), r"1: only one of the models has"),
    ):
        refused(optimizer, cnn, other, text)
    refused(
        adam((one := nn.Linear(2, 3)).parameters()), one, nn.Linear(2, 4),
        r"weight: the parameter has two sizes; expected \(3, 2\); got \(4, 2\)",
    )  # fmt: skip
    refused(adam(one.parameters()), one, nn.ReLU(), r"weight: only one of the models has this")
    refused(
        adam(fc.parameters()), cnn, fc, r"parameter 0, \(3, 18\), is not a parameter of the first"
    )
    refused(optimizer, cnn, 3, "this is not a model that convfc knows", UnsupportedModel)


def test_a_layer_that_a_tool_has_changed() -> None:
    cnn, fc = grouped()
    fc[0].fc[0] = nn.Sequential(nn.Linear(18, 1), nn.Linear(1, 3))
    refused(adam(cnn.parameters()), cnn, fc, "0: its weight is not its own parameter")


def test_a_parameter_that_is_two_in_the_other_model() -> None:
    cnn = nn.Sequential(nn.Conv1d(2, 2, 3, bias=False), nn.ConvTranspose1d(2, 2, 3, bias=False))
    cnn[1].weight = cnn[0].weight
    fc = convfc.to_fc(cnn)
    refused(
        adam(cnn.parameters()), cnn, fc,
        r"1\.weight: it is one parameter with 0\.weight in the first model, and two in the other",
    )  # fmt: skip


def test_a_state_dict_that_does_not_say_which_parameters_it_means() -> None:
    cnn, fc = grouped()
    weight, bias = cnn.parameters()
    two = adam([{"params": [weight]}, {"params": [bias]}])
    refused(
        two.state_dict(), cnn, fc, r"expected one group of the 2 .*got 2 parameters in 2 groups"
    )
    refused(adam([bias]).state_dict(), cnn, fc, r"got 1 parameters in 1 group\.")
    assert len(convert_optimizer_state(two, cnn, fc)["param_groups"]) == 2
    refused(adam([bias, weight]), cnn, fc, r"param_groups\[0\]: its parameters stand in another or")
    wrapped = optim.Adam([(f"module.{n}", p) for n, p in cnn.named_parameters()])
    refused(
        wrapped.state_dict(), cnn, fc, r"the parameter module\.0\.weight is not a parameter of the"
    )
    refused(
        {"optimizer": two.state_dict()}, cnn, fc, r"neither an optimizer of PyTorch nor .* dict"
    )
    refused(None, cnn, fc, r"neither an optimizer of PyTorch nor .*got NoneType")
