"""to_fc on whole models: which layers, shared and tied ones, hooks, refusals by name."""

from __future__ import annotations

import warnings

import pytest
import torch
from conv_cases import integers
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
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


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    )


def is_converted(module: nn.Module) -> bool:
    return form_of(module) in ("patch", "weight")


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_leaves_the_model_alone(form: str) -> None:
    model = network()
    kept = dict(model.named_parameters())
    after = convfc.to_fc(model, form=form)
    assert type(after) is nn.Sequential
    assert is_converted(after[0])
    assert is_converted(after[2][0])
    assert type(model[0]) is nn.Conv2d
    assert all(p is kept[name] for name, p in model.named_parameters())
    pointers = {p.data_ptr() for p in model.parameters()}
    assert not pointers & {p.data_ptr() for p in after.parameters()}


@pytest.mark.parametrize("form", FORMS)
def test_in_place_changes_the_model_itself(form: str) -> None:
    model = network()
    x = torch.randn(1, 3, 9, 9)
    bias = model[0].bias
    y = model.eval()(x)
    assert convfc.to_fc(model, form=form, inplace=True) is model
    assert is_converted(model[0])
    assert any(p is bias for p in model.parameters())
    torch.testing.assert_close(model(x), y)


def test_a_bare_layer() -> None:
    layer = nn.Conv2d(3, 4, 3)
    assert isinstance(convfc.to_fc(layer), PatchConv)
    assert type(layer) is nn.Conv2d
    with pytest.raises(ArgumentError, match="the model is itself the CONV layer"):
        convfc.to_fc(layer, inplace=True)
    assert convfc.to_fc(layer, form="weight", inplace=True) is layer


@pytest.mark.parametrize(
    "where",
    [
        "2.*",
        ["2.0"],
        lambda name, module: name == "2.0",
        lambda name, m: m.__class__ is nn.Conv2d and m.in_channels == 4,
    ],
    ids=["glob", "list", "name", "module"],
)
def test_where_selects(where: object) -> None:
    after = convfc.to_fc(network(), where=where)
    assert type(after[0]) is nn.Conv2d
    assert isinstance(after[2][0], PatchConv)


def test_where_that_selects_nothing_is_an_error() -> None:
    with pytest.raises(NothingToConvert, match=r"at least one of 0, 2\.0; got layer9.*inspect"):
        convfc.to_fc(network(), where="layer9.*")


def test_a_model_without_conv_layers_stays_what_it_is() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    assert type(convfc.to_fc(model)[0]) is nn.Linear


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("form", [*FORMS, "unrolled"])
def test_what_is_made_in_inference_mode_can_be_trained(form: str, inplace: bool) -> None:
    model, x = network(), torch.randn(2, 3, 9, 9)
    expected = network()(x)
    options = {} if form == "unrolled" else {"inplace": inplace}
    with torch.inference_mode():
        after = in_form(model, form, x, **options)
        assert torch.is_inference_mode_enabled()
    assert not any(p.is_inference() for p in after.parameters())
    torch.testing.assert_close(after(x), expected)
    torch.optim.SGD(after.parameters(), lr=0.1).step(lambda: after(x).sum().backward())
    with torch.inference_mode():
        back = convfc.to_conv(after, inplace=inplace, project=True) if form != "unrolled" else None
    if back is not None:
        torch.optim.SGD(back.parameters(), lr=0.1).step(lambda: back(x).sum().backward())
        assert all(p.grad is not None for p in back.parameters())


def test_a_model_made_in_inference_mode_is_converted_as_any_other() -> None:
    with torch.inference_mode():
        model = network()
    x = torch.randn(2, 3, 9, 9)
    for form in FORMS:
        after = convfc.to_fc(model, form=form)
        assert convfc.verify(model, after, x).holds
        assert not any(p.is_inference() for p in after.parameters())


def test_the_warning_points_to_the_users_line() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyConv2d(4, 3))
    with pytest.warns(UnsupportedLayerWarning, match="left as they are: 1 ") as told:
        convfc.to_fc(model, strict=False)
    assert [warning.filename for warning in told] == [__file__]


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ArgumentError, match="there is no such form; expected 'patch' or 'weight'"):
        convfc.to_fc(network(), form="toeplitz")


def test_a_weight_form_with_its_groups_apart_is_refused() -> None:
    message = r"^groups: the weight form holds all groups .*got 'separate', form='weight'\. Remedy"
    with pytest.raises(ArgumentError, match=message):
        convfc.to_fc(network(), form="weight", groups="separate")
    assert convfc.to_fc(network(), form="weight", groups="batched")[0].parametrizations


@pytest.mark.parametrize("thing", [nn.Conv2d, "model.pt", {"weight": 1}, None], ids=str)
def test_what_is_no_model_is_refused(thing: object) -> None:
    with pytest.raises(UnsupportedModel, match="give the model object itself"):
        convfc.to_fc(thing)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.first(x))


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_at_two_places_stays_one(form: str) -> None:
    model = Twice()
    after = convfc.to_fc(model, form=form)
    assert after.first is after.again
    assert is_converted(after.first)
    assert list(after.state_dict()) == list(model.state_dict())
    x = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(after(x), model(x))


@pytest.mark.parametrize("form", FORMS)
def test_layers_that_share_a_weight_go_on_sharing_it(form: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, dilation=2))
    model[1].weight = model[0].weight
    after = convfc.to_fc(model, form=form)
    matrices = [p for p in after.parameters() if p.dim() == 2]
    assert len(matrices) == 1
    x = torch.randn(1, 4, 9, 9)
    torch.testing.assert_close(after(x), model(x))
    with torch.no_grad():
        matrices[0].zero_()
    assert not torch.count_nonzero(after[0](x) - after[0].bias[:, None, None])
    assert not torch.count_nonzero(after[1](x) - after[1].bias[:, None, None])


@pytest.mark.parametrize("first", [*FORMS, "unrolled"])
@pytest.mark.parametrize("second", [*FORMS, "unrolled"])
def test_layers_that_share_a_weight_share_it_from_form_to_form(first: str, second: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    model[1].weight = model[0].weight
    x = torch.randn(1, 4, 5, 5)
    after = model
    for form in (first, second):
        after = in_form(after, form, x)
        assert len([p for p in after.parameters() if p.dim() == 2]) == 1, form
    torch.testing.assert_close(after(x), model(x))
    back = convfc.to_conv(after)
    assert back[0].weight is back[1].weight
    assert torch.equal(back[0].weight, model[0].weight)


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_shared_with_a_layer_that_stays_is_refused(form: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model[1].weight = model[0].weight
    with pytest.raises(UnsupportedLayer, match=r"^0: its weight is also a parameter of 1 \(Conv2d"):
        convfc.to_fc(model, form=form, where="0")


@pytest.mark.parametrize("form", FORMS)
def test_modes_gradients_and_frozen_weights_are_kept(form: str) -> None:
    model = network().eval()
    model[0].weight.requires_grad_(False)
    model[2].train()
    x = torch.randn(2, 3, 9, 9)
    model(x).sum().backward()
    want = model[2][0].weight.grad.movedim(1, -1).flatten(1)
    after = convfc.to_fc(model, form=form, inplace=True)
    assert [p.requires_grad for p in after[0].parameters() if p.dim() == 2] == [False]
    assert (after[0].training, after[2][0].training) == (False, True)
    assert all(m.training == after[0].training for m in after[0].modules())
    (grad,) = [p.grad for p in after[2][0].parameters() if p.dim() == 2]
    assert torch.equal(grad, want)


@pytest.mark.parametrize("form", FORMS)
def test_hooks_of_the_layer_are_kept_and_their_handles_work(form: str) -> None:
    model = network()
    seen = []
    layer = model[0]
    handles = [
        layer.register_forward_pre_hook(lambda m, args: seen.append("pre")),
        layer.register_forward_hook(lambda m, args, out: out + 1),
        layer.register_full_backward_hook(lambda m, gin, gout: seen.append("back")),
        layer.register_forward_hook(
            lambda m, args, kwargs, out: seen.append("kwargs"), with_kwargs=True
        ),
    ]
    x = torch.randn(1, 3, 9, 9)
    y = layer(x)
    seen.clear()
    convfc.to_fc(model, form=form, inplace=True)
    z = model[0](x.requires_grad_())
    torch.testing.assert_close(z, y)
    z.sum().backward()
    assert seen == ["pre", "kwargs", "back"]
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(model[0](x), y - 1)
    assert seen == ["pre", "kwargs", "back"]


def test_no_random_number_is_drawn() -> None:
    model = network()
    state = torch.get_rng_state()
    for form in FORMS:
        convfc.to_fc(model, form=form)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_forms_convert_into_each_other() -> None:
    model = network()
    weight = convfc.to_fc(model, form="weight")
    patch = convfc.to_fc(weight)
    assert isinstance(patch[0], PatchConv)
    assert form_of(weight[0]) == "weight"
    assert torch.equal(patch[0].weight, model[0].weight)


class Own(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class OwnConv(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight)


def instance_forward() -> nn.Module:
    layer = nn.Conv2d(3, 4, 3)
    layer.forward = lambda x: nn.Conv2d.forward(layer, x) + 1
    return layer


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Conv2d(3, 4, 3))


REFUSED = {
    "own forward": (lambda: Own(3, 4, 3), "Own: its class Own has a forward of its own"),
    "own _conv_forward": (lambda: OwnConv(3, 4, 3), "has a _conv_forward of its own"),
    "instance forward": (instance_forward, "has a forward of its own"),
    "lazy": (lambda: nn.LazyConv2d(4, 3), "its weight has no size yet"),
    "parametrized": (
        lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        "its weight is computed by a parametrization",
    ),
    "weight norm": (old_weight_norm, "its weight is not a parameter but computed"),
    "pruned": (
        lambda: prune.l1_unstructured(nn.Conv2d(3, 4, 3), "weight", 0.5),
        "its weight is not a parameter but computed",
    ),
    "functional": (Functional, "conv2d"),
    "script": (lambda: torch.jit.script(nn.Conv2d(3, 4, 3)), "TorchScript"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused_by_name_or_listed(name: str, form: str) -> None:
    make, reason = REFUSED[name]
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ModuleDict({"odd": make()}))
    with pytest.raises(UnsupportedLayer, match=rf"^1\.odd: .*{reason}.*Remedy: .*strict=False"):
        convfc.to_fc(model, form=form, inplace=True)
    assert type(model[0]) is nn.Conv2d, "a refused model stays as it was"
    twin = nn.Sequential(nn.Conv2d(3, 3, 1), model[1])
    convfc.to_fc(twin, form=form, where="0", inplace=True)  # what is not selected may be anything
    assert is_converted(twin[0])
    with pytest.warns(UnsupportedLayerWarning, match=rf"1\.odd \(.*{reason}"):
        after = convfc.to_fc(model, form=form, strict=False, inplace=True)
    assert is_converted(after[0])
    assert not is_converted(after[1]["odd"])


def test_all_places_are_named() -> None:
    model = nn.Sequential(Own(3, 4, 3), nn.Conv2d(4, 4, 1), OwnConv(4, 4, 3))
    with pytest.raises(UnsupportedLayer, match=r"^0: .* \(nor can 2\)"):
        convfc.to_fc(model)


class Plain(nn.Conv2d):
    """A subclass that changes nothing about the call."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.note = ["mine"]
        self.register_buffer("calls", torch.zeros(1))


@pytest.mark.parametrize("form", FORMS)
def test_a_subclass_with_pytorchs_forward_is_converted(form: str) -> None:
    layer = Plain(3, 4, 3)
    after = convfc.to_fc(layer, form=form)
    assert is_converted(after)
    assert after.note == ["mine"]
    assert list(after.state_dict()) == list(layer.state_dict())
    x = integers((1, 3, 5, 5), torch.float32)
    torch.testing.assert_close(after(x), layer(x))


def test_a_tools_parametrization_goes_on_top_of_the_weight_form() -> None:
    class Halved(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    after = convfc.to_fc(network(), form="weight")
    weight = after[0].weight.detach().clone()
    parametrize.register_parametrization(after[0], "weight", Halved())
    assert torch.equal(after[0].weight, weight / 2)
    assert form_of(after[0]) == "weight"


def test_a_model_that_cannot_be_copied_says_so() -> None:
    model = network()
    model.note = (i for i in ())
    with pytest.raises(UnsupportedModel, match=r"cannot be copied.*inplace=True"):
        convfc.to_fc(model)
