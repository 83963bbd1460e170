"""to_fc on whole models: which layers, shared and tied ones, refusals by name or listed."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from adapters import OwnForward
from networks import net, two_convs
from torch import Tensor, nn
from torch_fixtures import in_form

import convfc
from convfc.errors import (
    ArgumentError,
    NothingToConvert,
    UnsupportedLayer,
    UnsupportedLayerWarning,
    UnsupportedModel,
)
from convfc.frameworks.torch import PatchConv
from convfc.frameworks.torch.forms.form import form_of

FORMS = ("patch", "weight")
each_form = pytest.mark.parametrize("form", FORMS)


def is_converted(module: nn.Module) -> bool:
    return form_of(module) in FORMS


@each_form
def test_in_place_modes_gradients_and_frozen_weights_are_kept(form: str) -> None:
    model, x = two_convs().eval(), torch.randn(2, 3, 9, 9)
    model[0].weight.requires_grad_(False)
    model[2].train()
    bias, random = model[0].bias, torch.get_rng_state()
    model(x).sum().backward()
    want = model[2][0].weight.grad.flatten(1)
    assert convfc.to_fc(model, form=form, inplace=True) is model
    assert torch.equal(torch.get_rng_state(), random)
    assert any(p is bias for p in model.parameters())
    assert [p.requires_grad for p in model[0].parameters() if p.dim() == 2] == [False]
    assert (model[0].training, model[2][0].training) == (False, True)
    assert all(m.training == model[0].training for m in model[0].modules())
    (grad,) = [p.grad for p in model[2][0].parameters() if p.dim() == 2]
    assert torch.equal(grad, want)


def test_a_model_that_cannot_be_copied_says_so() -> None:
    model = two_convs()
    model.note = (i for i in ())
    with pytest.raises(UnsupportedModel, match=r"cannot be copied.*inplace=True"):
        convfc.to_fc(model)


def test_a_bare_layer() -> None:
    layer = nn.Conv2d(3, 4, 3)
    assert isinstance(convfc.to_fc(layer), PatchConv)
    assert type(layer) is nn.Conv2d
    assert convfc.to_fc(layer, form="weight", inplace=True) is layer


@pytest.mark.parametrize(
    "where",
    ["2.*", ["2.0"], lambda name, m: m.__class__ is nn.Conv2d and m.in_channels == 4],
    ids=["glob", "list", "function"],
)
def test_where_selects(where: object) -> None:
    after = convfc.to_fc(two_convs(), where=where)
    assert type(after[0]) is nn.Conv2d
    assert isinstance(after[2][0], PatchConv)


def test_nothing_to_convert_is_an_error() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4)), torch.zeros(1, 3)
    for convert in (convfc.to_fc, lambda model: convfc.unroll(model, x)):
        with pytest.raises(NothingToConvert, match=r"^model: the model has no CONV layer\. Remedy"):
            convert(model)
    message = r"^where: .* no CONV layer; expected at least one of 0, 2\.0; got layer9\.\*\. Remedy"
    with pytest.raises(NothingToConvert, match=message):
        convfc.to_fc(two_convs(), where="layer9.*")
    half = convfc.to_fc(two_convs(), where="0")
    with pytest.raises(NothingToConvert, match=r"no CONV layer that is not in patch form already"):
        convfc.to_fc(half, where="0")


@pytest.mark.parametrize("form", [*FORMS, "unrolled"])
def test_what_is_made_in_inference_mode_can_be_trained(form: str) -> None:
    model, x = two_convs(), torch.randn(2, 3, 9, 9)
    with torch.inference_mode():
        after = in_form(model, form, x)
        back = convfc.to_conv(after)
        assert torch.is_inference_mode_enabled()
    for made in (after, back):
        assert not any(p.is_inference() for p in made.parameters())
        torch.optim.SGD(made.parameters(), lr=0.1).step(lambda made=made: made(x).sum().backward())
        assert all(p.grad is not None for p in made.parameters())


@each_form
def test_a_model_made_in_inference_mode_is_converted_as_any_other(form: str) -> None:
    with torch.inference_mode():
        model = two_convs()
    after = convfc.to_fc(model, form=form)
    assert convfc.verify(model, after, torch.randn(2, 3, 9, 9)).holds
    assert not any(p.is_inference() for p in after.parameters())


def test_the_warning_points_to_the_users_line() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyConv2d(4, 3))
    with pytest.warns(UnsupportedLayerWarning, match="left as they are: 1 ") as told:
        convfc.to_fc(model, strict=False)
    assert [warning.filename for warning in told] == [__file__]


def test_a_weight_form_with_its_groups_apart_is_refused() -> None:
    message = r"^groups: the weight form holds all groups .*got 'separate', form='weight'\. Remedy"
    with pytest.raises(ArgumentError, match=message):
        convfc.to_fc(two_convs(), form="weight", groups="separate")
    assert convfc.to_fc(two_convs(), form="weight", groups="batched")[0].parametrizations


@pytest.mark.parametrize("thing", [nn.Conv2d, "model.pt", {"weight": 1}, None], ids=str)
def test_what_is_no_model_is_refused(thing: object) -> None:
    with pytest.raises(UnsupportedModel, match="give the model object itself"):
        convfc.to_fc(thing)


@each_form
def test_a_layer_at_two_places_stays_one(form: str) -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    model = net(lambda m, x: m.again(m.first(x)), first=layer, again=layer)
    after = convfc.to_fc(model, form=form)
    assert after.first is after.again
    assert is_converted(after.first)
    assert list(after.state_dict()) == list(model.state_dict())
    x = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(after(x), model(x))
    back = convfc.to_conv(after)
    assert back.first is back.again
    assert torch.equal(back.first.weight, layer.weight)


def of_one_weight() -> nn.Sequential:
    """Two layers with one weight."""
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations([*FORMS, "unrolled"], 2)))
def test_layers_that_share_a_weight_share_it_from_form_to_form(first: str, second: str) -> None:
    model, x = of_one_weight(), torch.randn(1, 4, 5, 5)
    after = model
    for form in (first, second):
        after = in_form(after, form, x)
        assert {form_of(layer) for layer in after} == {form}
        assert len([p for p in after.parameters() if p.dim() == 2]) == 1, form
    torch.testing.assert_close(after(x), model(x))
    back = convfc.to_conv(after)
    assert back[0].weight is back[1].weight
    assert torch.equal(back[0].weight, model[0].weight)


def test_a_weight_shared_with_a_layer_that_stays_is_refused() -> None:
    with pytest.raises(UnsupportedLayer, match=r"^0: its weight is also a parameter of 1 \(Conv2d"):
        convfc.to_fc(of_one_weight(), where="0")


@each_form
def test_hooks_of_every_kind_are_kept_and_their_handles_work(form: str) -> None:
    model, x, seen = two_convs(), torch.randn(1, 3, 9, 9), []
    layer = model[0]
    handles = [
        layer.register_forward_pre_hook(lambda m, args: seen.append("pre")),
        layer.register_full_backward_hook(lambda m, gin, gout: seen.append("back")),
        layer.register_forward_hook(
            lambda m, args, kwargs, out: seen.append("kwargs"), with_kwargs=True
        ),
    ]
    convfc.to_fc(model, form=form, inplace=True)
    model[0](x.requires_grad_()).sum().backward()
    assert seen == ["pre", "kwargs", "back"]
    for handle in handles:
        handle.remove()
    model[0](x).sum().backward()
    assert seen == ["pre", "kwargs", "back"]


class OwnConv(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


def instance_forward() -> nn.Module:
    layer = nn.Conv2d(3, 4, 3)
    layer.forward = lambda x: nn.Conv2d.forward(layer, x) + 1
    return layer


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Conv2d(3, 4, 3))


REFUSED = {
    "own forward": (
        lambda: OwnForward(3, 4, 3),
        "OwnForward: its class OwnForward has a forward of its own",
    ),
    "own _conv_forward": (lambda: OwnConv(3, 4, 3), "has a _conv_forward of its own"),
    "instance forward": (instance_forward, "has a forward of its own"),
    "weight norm": (old_weight_norm, "its weight is not a parameter but computed"),
    "script": (lambda: torch.jit.script(nn.Conv2d(3, 4, 3)), "TorchScript"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused_by_name_or_listed(name: str) -> None:
    make, reason = REFUSED[name]
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ModuleDict({"odd": make()}))
    with pytest.raises(UnsupportedLayer, match=rf"^1\.odd: .*{reason}.*Remedy: .*strict=False"):
        convfc.to_fc(model, form="weight", inplace=True)
    assert type(model[0]) is nn.Conv2d, "a refused model stays as it was"
    twin = nn.Sequential(nn.Conv2d(3, 3, 1), model[1])
    convfc.to_fc(
        twin, form="weight", where="0", inplace=True
    )  # what is not selected may be anything
    assert is_converted(twin[0])
    with pytest.warns(UnsupportedLayerWarning, match=rf"1\.odd \(.*{reason}"):
        after = convfc.to_fc(model, form="weight", strict=False, inplace=True)
    assert is_converted(after[0])
    assert not is_converted(after[1]["odd"])


def test_all_places_are_named() -> None:
    model = nn.Sequential(OwnForward(3, 4, 3), nn.Conv2d(4, 4, 1), OwnConv(4, 4, 3))
    with pytest.raises(UnsupportedLayer, match=r"^0: .* \(nor can 2\)"):
        convfc.to_fc(model, form="weight")


def test_where_is_asked_of_the_model_that_is_given() -> None:
    """A layer of another form is taken back first, and is of another class then."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    fc = convfc.to_fc(model)
    fc[2].fc = nn.Sequential(nn.Linear(36, 2, bias=False), nn.Linear(2, 4))  # goes back as two
    after = convfc.to_fc(
        fc, form="weight", where=lambda name, part: isinstance(part, PatchConv) and name == "2"
    )
    assert form_of(after[0]) == "patch"
    assert [form_of(part) for part in after[2]] == ["weight", "weight"]
