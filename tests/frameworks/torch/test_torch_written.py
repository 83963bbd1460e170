"""What is written into a weight, a bias or a state dict in place, or loaded, is the layer's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conv_cases import SMALL, ConvCase, case, integers
from networks import assert_same_state, through_a_file
from torch import Tensor, nn
from torch_fixtures import in_form

import convfc
from convfc.errors import UnsupportedLayer

FORMS = ("patch", "batched", "weight")
# Of a transposed layer with groups of several channels no strides can show the weight.
WRITTEN_THROUGH = case(nn.ConvTranspose2d, (4, 6, 3), 4, 5, groups=2)
GROUPED = [
    case(nn.Conv2d, (4, 6, 3), 7, 6, groups=2),
    case(nn.Conv1d, (4, 4, 3), 9, groups=4, bias=False),
    case(nn.ConvTranspose2d, (4, 4, 2), 4, 5, groups=4, stride=2),
    WRITTEN_THROUGH,
]
ALL = [*SMALL, *GROUPED]


def halved(layer: nn.Module) -> nn.Module:
    """The same layer with numbers that no form had before, exact in every dtype."""
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(parameter.flip(0) / 2 + 1)
    return twin


def as_they_are(model: nn.Module) -> nn.Module:
    return model


def to_another_dtype(model: nn.Module) -> nn.Module:
    return model.float().double()


AFTER = (
    as_they_are,
    copy.deepcopy,
    lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301
    through_a_file,
    to_another_dtype,
)
AFTER_IDS = ("as-they-are", "deepcopy", "pickle", "torch.save", "dtype")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", GROUPED, ids=str)
def test_into_a_state_dict_after_a_change_of_dtype(case: ConvCase, form: str) -> None:
    layer = case.layer()
    converted = in_form(nn.Sequential(layer), form, None)
    model, wanted = to_another_dtype(converted), halved(layer)
    for held, new in zip(model.state_dict().values(), wanted.state_dict().values(), strict=True):
        held.copy_(new)
    assert torch.equal(model(case.x()), wanted(case.x()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", ALL, ids=str)
def test_into_weight_and_bias(case: ConvCase, form: str) -> None:
    layer = case.layer()
    converted, wanted = in_form(layer, form, None), halved(layer)
    with torch.no_grad():
        converted.weight.copy_(wanted.weight)
        if wanted.bias is not None:
            converted.bias.data[:] = wanted.bias
    assert torch.equal(converted(case.x()), wanted(case.x()))


def clip(weight: Tensor) -> None:
    weight.data.clamp_(-1, 1)


def zero_one_filter(weight: Tensor) -> None:
    with torch.no_grad():
        weight[0] = 0


def scale_all_at_once(weight: Tensor) -> None:
    with torch.no_grad():
        torch._foreach_mul_([weight], 2.0)


WRITERS = (nn.init.zeros_, clip, zero_one_filter, scale_all_at_once)


@pytest.mark.parametrize("write", WRITERS, ids=[write.__name__ for write in WRITERS])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", GROUPED, ids=str)
def test_as_users_write(case: ConvCase, form: str, write: Callable[[Tensor], Any]) -> None:
    layer = case.layer()
    converted = in_form(layer, form, None)
    for one in (layer, converted):
        write(one.weight)
    assert torch.equal(converted(case.x()), layer(case.x()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", ALL, ids=str)
def test_the_gradient_stands_where_the_weight_does(case: ConvCase, form: str) -> None:
    layer = case.layer()
    converted = in_form(layer, form, None)
    for one in (layer, converted):
        one(case.x()).square().sum().backward()
    assert torch.equal(converted.weight.grad, layer.weight.grad)
    converted.weight.grad.zero_()
    grads = [p.grad for p in converted.parameters() if p.dim() > 1]
    assert all(not grad.any() for grad in grads)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", GROUPED, ids=str)
def test_a_moving_average_of_weights(case: ConvCase, form: str) -> None:
    """As timm's ModelEmaV3, ultralytics and most by hand: by the values of two state dicts."""
    layer, newer = case.layer(), halved(case.layer())
    average = copy.deepcopy(in_form(layer, form, None))
    model = in_form(newer, form, None)
    for held, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        held.mul_(0.5).add_(new.detach(), alpha=0.5)
    with torch.no_grad():
        for held, new in zip(layer.parameters(), newer.parameters(), strict=True):
            held.mul_(0.5).add_(new, alpha=0.5)
    assert torch.equal(average(case.x()), layer(case.x()))


@pytest.mark.parametrize("after", AFTER, ids=AFTER_IDS)
@pytest.mark.parametrize("case", GROUPED[:3], ids=str)
def test_the_groups_lie_in_one_memory(
    case: ConvCase, after: Callable[[nn.Module], nn.Module]
) -> None:
    layer = after(convfc.to_fc(case.layer()))
    weight = layer.state_dict()["weight"]
    assert type(weight) is Tensor
    assert weight.data_ptr() == layer.fc[0].weight.data_ptr() == layer.weight.data_ptr()
    assert {fc.weight.untyped_storage().data_ptr() for fc in layer.fc} == {weight.data_ptr()}
    assert all(type(fc.weight) is nn.Parameter for fc in layer.fc)


def test_parts_that_a_tool_has_moved_apart_are_written_through() -> None:
    layer = convfc.to_fc(nn.Conv2d(4, 6, 3, groups=2).double())
    for fc in layer.fc:
        fc.weight.data = fc.weight.data.clone()
    expected = layer(integers((1, 4, 5, 5)))
    layer.state_dict()["weight"].mul_(2)
    layer.state_dict()["bias"].mul_(2)
    assert torch.equal(layer(integers((1, 4, 5, 5))), 2 * expected)


def test_a_tensor_that_others_share_is_not_moved() -> None:
    layer = convfc.to_fc(nn.Conv2d(4, 6, 3, groups=2))
    vector = nn.utils.parameters_to_vector(layer.parameters()).detach()
    nn.utils.vector_to_parameters(vector, layer.parameters())
    layer.float()
    vector.zero_()
    assert all(not parameter.any() for parameter in layer.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_what_is_computed_with_an_entry_is_plain(form: str) -> None:
    layer = in_form(WRITTEN_THROUGH.layer(), form, None)
    entry = layer.state_dict()["weight"]
    kept, own = copy.deepcopy(entry), entry.clone()
    assert [type(t) for t in (kept, own, entry + 0, entry.cpu().clone())] == [Tensor] * 4
    for copied in (kept, own):
        copied.zero_()
    loaded = through_a_file(layer.state_dict(), weights_only=True)["weight"]
    assert type(loaded) is Tensor
    assert torch.equal(loaded, WRITTEN_THROUGH.layer().weight)
    assert torch.equal(layer.weight, WRITTEN_THROUGH.layer().weight)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", GROUPED, ids=str)
def test_in_inference_mode(case: ConvCase, form: str) -> None:
    layer = in_form(case.layer(), form, None)
    with torch.inference_mode():
        layer.state_dict()["weight"].zero_()
        assert not layer(case.x()).flatten(2).diff().any()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_group_that_changes_between_forward_and_backward_is_told(frozen: bool) -> None:
    layer = in_form(nn.Conv2d(4, 6, 3, groups=2), "patch").requires_grad_(not frozen)
    x = torch.ones(1, 4, 5, 5, requires_grad=True)
    y = layer(x).sum()
    with torch.no_grad():
        layer.fc[1].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


# In weight form the bias is the CONV layer's own parameter.
@pytest.mark.parametrize(
    ("form", "name"), [("patch", "weight"), ("patch", "bias"), ("weight", "weight")]
)
def test_another_parameter_is_refused_with_the_way_out(form: str, name: str) -> None:
    layer = in_form(nn.Conv2d(3, 4, 3), form, None)
    for value in (nn.Parameter(torch.zeros(4)), torch.zeros(4)):
        with pytest.raises(UnsupportedLayer, match=rf"{name}: a layer in {form} form.*copy_"):
            setattr(layer, name, value)


@pytest.mark.parametrize("form", FORMS)
def test_functional_call_takes_the_named_parameters(form: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU()).double()
    converted = in_form(model, form, None)
    x = integers((2, 4, 6, 6))
    with pytest.raises(UnsupportedLayer, match="functional_call takes dict"):
        torch.func.functional_call(converted, converted.state_dict(), x)
    zeros = {name: torch.zeros_like(p) for name, p in converted.named_parameters()}
    assert not torch.func.functional_call(converted, zeros, x).any()
    assert torch.equal(converted(x), model(x))


# State dicts: unchanged in both forms, loaded strictly in both directions.


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, bias=False),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU()),
        nn.ConvTranspose2d(6, 4, 2, groups=2),
    ).double()


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("form", ["patch", "weight"])
def test_whole_models_through_a_file(form: str, assign: bool) -> None:
    model, other = network(), network()
    after = convfc.to_fc(model, form=form)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    for source, target in ((model, after), (after, other)):
        state = through_a_file(source.state_dict(), weights_only=True)
        target.load_state_dict(state, strict=True, assign=assign)
        assert_same_state(target, model)


@pytest.mark.parametrize("form", ["patch", "weight"])
def test_keep_vars_keeps_the_graph(form: str) -> None:
    after = convfc.to_fc(nn.Conv2d(3, 4, 3), form=form)
    assert after.state_dict(keep_vars=True)["weight"].requires_grad
    assert not after.state_dict()["weight"].requires_grad


@pytest.mark.parametrize("form", ["patch", "weight"])
def test_strict_loading_names_what_does_not_fit(form: str) -> None:
    model = convfc.to_fc(network(), form=form)
    state = network().state_dict()
    wrong = {**state, "0.weight": torch.zeros(9, 9, 3, 3)}
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight.*9, 9, 3, 3.*4, 3, 3, 3"):
        model.load_state_dict(wrong)
    with pytest.raises(RuntimeError, match=r"size mismatch for 3\.bias.*\[9\].*\[4\]") as raised:
        model.load_state_dict({**state, "3.bias": torch.zeros(9)})
    assert "Missing" not in str(raised.value)
    assert "Unexpected" not in str(raised.value)
    missing = {key: value for key, value in state.items() if key != "3.bias"}
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(missing)


def test_a_tools_own_module_is_saved_as_it_saves_itself() -> None:
    after = convfc.to_fc(nn.Conv2d(3, 4, 3))
    after.fc = nn.Sequential(nn.Linear(27, 2), nn.Linear(2, 4))
    keys = ["fc.0.weight", "fc.0.bias", "fc.1.weight", "fc.1.bias"]
    assert list(after.state_dict()) == keys
    after.load_state_dict(after.state_dict(), strict=True)


def test_metadata_and_order_are_those_of_the_original() -> None:
    model = network()
    for form in ("patch", "weight"):
        after = convfc.to_fc(model, form=form)
        assert list(after.state_dict(prefix="a.")) == list(model.state_dict(prefix="a."))
        assert after.state_dict()._metadata["1"] == model.state_dict()._metadata["1"]
