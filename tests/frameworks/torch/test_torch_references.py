"""Layers that something holds beside the registry: it gets the new layer, or is refused by name."""

from __future__ import annotations

import functools
import types
import weakref
from collections import OrderedDict, UserList, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from conv_cases import integers
from networks import net
from torch import Tensor, nn
from torch_fixtures import in_form

import convfc
from convfc.errors import UnsupportedLayer, UnsupportedLayerWarning
from convfc.frameworks.torch import PatchConv
from convfc.frameworks.torch.forms.form import form_of
from convfc.frameworks.torch.references import blocked_references, exchange
from convfc.methods.morphism import factor, morph_activation, morph_depth, morph_kernel, widen
from convfc.methods.uncertainty import mean_network, sample, to_bayesian

X = integers((2, 2, 6, 6))
Named = namedtuple("Named", "layer")


@dataclass(frozen=True)
class Frozen:
    layer: nn.Module


class Slots:
    __slots__ = ("layer",)

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer


def run(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)


# What holds the layer, and how forward calls it through that.
HOLDERS: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Any, Tensor], Tensor]]] = {
    "attribute": (lambda c: c, lambda held, x: held(x)),
    "list": (lambda c: [c], lambda held, x: held[0](x)),
    "dict": (lambda c: {"a": c}, lambda held, x: held["a"](x)),
    "dict-key": (lambda c: {c: 1, "b": 2}, lambda held, x: next(iter(held))(x)),
    "ordered": (lambda c: OrderedDict(a=c), lambda held, x: held["a"](x)),
    "tuple": (lambda c: (c,), lambda held, x: held[0](x)),
    "namedtuple": (Named, lambda held, x: held.layer(x)),
    "set": (lambda c: {c}, lambda held, x: next(iter(held))(x)),
    "frozenset": (lambda c: frozenset({c}), lambda held, x: next(iter(held))(x)),
    "deque": (lambda c: deque([c]), lambda held, x: held[0](x)),
    "nested": (lambda c: [{"a": (0, [c])}], lambda held, x: held[0]["a"][1][0](x)),
    "partial": (lambda c: functools.partial(run, c), lambda held, x: held(x)),
    "partial-of": (functools.partial, lambda held, x: held(x)),
    "partial-keyword": (
        lambda c: functools.partial(run, layer=c),
        lambda held, x: held(x=x),
    ),
    "call": (lambda c: c.__call__, lambda held, x: held(x)),
    "bound-by-hand": (lambda c: types.MethodType(run, c), lambda held, x: held(x)),
    "partial-of-method": (lambda c: functools.partial(c.__call__), lambda held, x: held(x)),
    "object": (lambda c: types.SimpleNamespace(layer=c), lambda held, x: held.layer(x)),
    "dataclass": (Frozen, lambda held, x: held.layer(x)),
    "slots": (Slots, lambda held, x: held.layer(x)),
    "userlist": (lambda c: UserList([c]), lambda held, x: held[0](x)),
    "not-registered": (lambda c: [nn.Sequential(nn.ReLU(), c)], lambda held, x: held[0](x)),
}


def closed(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function that has closed over a layer."""

    def call(x: Tensor) -> Tensor:
        return layer(x)

    return call


class Held(nn.Module):
    """Its layers are registered, and are called through what holds them as well."""

    def __init__(self, holder: str) -> None:
        super().__init__()
        make, self.call = HOLDERS[holder]
        self.conv = nn.Conv2d(2, 3, 3, padding=1, groups=1).double()
        self.last = nn.Conv2d(3, 2, 3).double()
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(integers(p.shape))
        object.__setattr__(self, "held", make(self.conv))
        object.__setattr__(self, "other", make(self.last))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.other, self.call(self.held, x).relu())


def check_is_called(model: nn.Module, before: nn.Module) -> None:
    """The registered parameters are the ones that compute, and they get the gradients."""
    y = model(X)
    assert torch.equal(y, before(X))
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert not model(X).any()


@pytest.mark.parametrize(
    ("holder", "form"),
    [
        *((holder, "patch") for holder in HOLDERS),
        *((holder, "weight") for holder in ("list", "partial", "bound-by-hand", "slots")),
        *((holder, "unrolled") for holder in ("tuple", "partial-of-method", "dataclass")),
    ],
)
def test_what_holds_a_layer_gets_the_fc_layer_and_the_conv_layer(holder: str, form: str) -> None:
    model, before = Held(holder), Held(holder)
    after = in_form(model, form, X)
    assert form_of(after.conv) == form
    back = convfc.to_conv(after)
    assert type(back.conv) is nn.Conv2d
    check_is_called(back, model)
    check_is_called(after, model)
    assert all(p.grad is None for p in model.parameters())
    if form != "unrolled":
        assert convfc.to_fc(model, form=form, inplace=True) is model
        assert form_of(model.conv) == form
        assert torch.equal(model(X), before(X))
        assert convfc.to_conv(model, inplace=True) is model
        assert type(model.conv) is nn.Conv2d
        check_is_called(model, before)


@pytest.mark.parametrize("form", ["patch", "weight"])
def test_a_bound_forward_is_that_of_the_new_layer(form: str) -> None:
    model = Held("list")
    model.held, model.other = [model.conv.forward], (model.last.forward,)
    after = convfc.to_fc(model, form=form)
    assert after.held[0].__self__ is after.conv
    assert after.held[0].__func__ is type(after.conv).forward
    check_is_called(after, model)


@pytest.mark.parametrize("holder", ["list", "frozenset", "partial-keyword", "not-registered"])
def test_random_layers_are_called_through_what_holds_them(holder: str) -> None:
    bayes = to_bayesian(Held(holder), "gaussian", initial_std=0.5)
    assert not torch.equal(bayes(X), bayes(X))
    drawn = convfc.to_conv(sample(bayes, seed=3))
    assert type(drawn.conv) is nn.Conv2d
    check_is_called(convfc.to_conv(mean_network(bayes)), Held(holder))


def test_a_linear_layer_is_random_where_a_list_holds_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.first = [model[0]]
    bayes = to_bayesian(model, "gaussian")
    assert bayes.first[0] is bayes[0]
    drawn = sample(bayes)
    assert drawn.first[0] is drawn[0]
    assert type(drawn[0]) is nn.Linear


MORPHS = {
    "kernel": lambda model, x: morph_kernel(model, "conv", kernel_size=5, example=x),
    "depth": lambda model, x: morph_depth(model, "conv", example=x),
    "activation": lambda model, x: morph_activation(model, "conv", example=x),
    "widen": lambda model, x: widen(model, "conv", width=5, example=x),
    "factor": lambda model, x: factor(model, "conv", rank=3, example=x),
}


@pytest.mark.parametrize(
    ("name", "holder"),
    list(zip(MORPHS, ["list", "tuple", "partial", "object", "dict"], strict=True)),
)
def test_a_morphed_layer_is_called_through_what_holds_it(name: str, holder: str) -> None:
    model, x = Held(holder), torch.rand(2, 2, 6, 6).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    morph = MORPHS[name](model, x)
    assert morph.certificate.holds
    morph.model(x).sum().backward()
    assert all(p.grad is not None for p in morph.model.conv.parameters())
    assert type(model.conv) is nn.Conv2d
    with torch.no_grad():
        for p in (*morph.model.conv.parameters(), morph.model.last.bias):
            p.zero_()
    assert not morph.model(x).any()


def flat() -> nn.Module:
    """A head that is called from a list."""

    def run(model: Any, x: Tensor) -> Tensor:
        for step in model.steps:
            x = step(x)
        return x

    model = net(run, conv=nn.Conv2d(1, 2, 3), flat=nn.Flatten(), fc=nn.Linear(8, 3))
    model.steps = list(model.children())
    return model


@pytest.mark.parametrize("inplace", [True, False])
def test_a_head_in_a_list_becomes_a_conv_layer_there(inplace: bool) -> None:
    x = torch.zeros(1, 1, 4, 4)
    after = convfc.to_fully_convolutional(flat(), x, inplace=inplace)
    assert [type(step).__name__ for step in after.steps] == ["Conv2d", "Identity", "Conv2d"]
    assert after.steps[2] is after.fc
    assert after(torch.zeros(1, 1, 7, 7)).shape == (1, 3, 4, 4)


def test_a_head_that_a_function_holds_is_refused() -> None:
    model = flat()
    model.also = closed(model.flat)
    with pytest.raises(
        UnsupportedLayer, match=r"fc: flat, which has to change.*the function call,"
    ):
        convfc.to_fully_convolutional(model, torch.zeros(1, 1, 4, 4))
    assert type(model.fc) is nn.Linear


# ------------------------------------------------------------------------- what cannot be exchanged

a_global = nn.Conv2d(2, 2, 3, padding=1)


def of_a_global(x: Tensor) -> Tensor:
    return helper(x)


def helper(x: Tensor) -> Tensor:
    return a_global(x)


class Closed(nn.Module):
    """Its layer is closed in, in one of many ways."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 2, 3, padding=1)
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.f = make(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.first(x))


def with_default(model: Any) -> Any:
    return lambda x, conv=model.conv: conv(x)


def with_keyword(model: Any) -> Any:
    return lambda x, *, conv=model.conv: conv(x)


def with_tuple(model: Any) -> Any:
    convs = (model.conv,)
    return lambda x: -convs[0](x)


def with_global(model: Any) -> Any:
    model.conv = a_global
    return of_a_global


def with_own_method(model: Any) -> Any:
    class Own(nn.Conv2d):
        def again(self, x: Tensor) -> Tensor:
            return self(self(x))

    model.conv = Own(2, 2, 3, padding=1)
    return model.conv.again


# Who refers to the layer, and inside what.
CLOSED: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "closure": (lambda model: closed(model.conv), "f", "the function call"),
    "closure-of-closure": (lambda m: [closed(closed(m.conv))], r"f\[0\]", "the function call"),
    "default": (with_default, "f", "the function <lambda>"),
    "keyword": (with_keyword, "f", "the function <lambda>"),
    "decorator": (lambda m: torch.no_grad()(closed(m.conv)), "f", "the function call"),
    "tuple-in-closure": (with_tuple, "f", "the function <lambda>"),
    "global": (with_global, "f", "the function of_a_global"),
    "own-method": (with_own_method, "f", "the method again"),
}


@pytest.mark.parametrize("name", CLOSED)
def test_what_is_closed_in_is_refused_by_name_or_listed(name: str) -> None:
    make, who, inside = CLOSED[name]
    words = f"{who} refers to it as well, inside {inside},"
    model = Closed(make)
    before = dict(model.named_modules())
    told = f"^conv: {words} which would go on calling the old one; it cannot be turned into an FC"
    with pytest.raises(UnsupportedLayer, match=rf"{told}.*by its registered name \(conv\)"):
        convfc.to_fc(model)
    assert dict(model.named_modules()) == before
    with pytest.warns(UnsupportedLayerWarning, match=rf"left as they are: conv \({words}"):
        after = convfc.to_fc(model, strict=False)
    assert isinstance(after.first, PatchConv)
    assert isinstance(after.conv, nn.Conv2d)


def test_only_the_weight_form_in_place_leaves_a_closed_in_layer_where_it_is() -> None:
    model, x = Closed(lambda model: closed(model.conv)), X.float()
    y = model(x)
    convfc.to_fc(model, form="weight", inplace=True)
    assert torch.equal(model(x), y)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_way_back_and_the_methods_refuse_it_too() -> None:
    fc = convfc.to_fc(nn.Sequential(nn.Conv2d(2, 2, 3), nn.Linear(4, 4)))
    fc.f = closed(fc[0])
    for inplace in (True, False):
        with pytest.raises(UnsupportedLayer, match=r"^0: f refers to it.*it cannot become a CONV"):
            convfc.to_conv(fc, inplace=inplace)
    fc.f = closed(fc[1])
    with pytest.raises(UnsupportedLayer, match=r"^1: f refers to it.*it cannot be exchang.*\(1\)$"):
        to_bayesian(fc, "gaussian")
    bayes = to_bayesian(nn.Sequential(nn.Linear(2, 2)), "gaussian")
    bayes.f = closed(bayes[0])
    with pytest.raises(UnsupportedLayer, match=r"^0: f refers to it as well"):
        sample(bayes)


@pytest.mark.parametrize("name", MORPHS)
def test_morphs_refuse_it(name: str) -> None:
    model = Held("list")
    model.f = closed(model.conv)
    with pytest.raises(UnsupportedLayer, match=r"^conv: f refers to it as well, inside"):
        MORPHS[name](model, X)


class OfItsClass(nn.Module):
    layers: ClassVar[list[nn.Module]] = []

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv = layer
        self.layers[:] = [layer]

    def forward(self, x: Tensor) -> Tensor:
        return self.last()(x)

    def last(self) -> nn.Module:
        return self.layers[-1]


def through_the_model(model: nn.Sequential) -> Any:
    return lambda x: -model[0](x)


def through_a_list(model: nn.Sequential) -> Any:
    layers = [model[0]]
    return lambda x: -layers[0](x)


SHARED: dict[str, tuple[Callable[[Any], Any] | None, str]] = {
    "class": (None, r"the class OfItsClass refers to it as well,"),
    "model": (through_the_model, "f refers to it as well, inside the function <lambda>"),
    "list": (through_a_list, "f refers to it as well, inside the function <lambda>"),
    "weak": (lambda model: weakref.ref(model[0]), "inside a weak reference"),
}


@pytest.mark.parametrize("name", SHARED)
def test_what_a_copy_shares_can_be_converted_in_place(name: str) -> None:
    make, words = SHARED[name]
    model = (nn.Sequential if make else OfItsClass)(nn.Conv2d(2, 2, 3))
    if make is not None:
        model.f = make(model)
    with pytest.raises(UnsupportedLayer, match=rf"{words}.*or change the model itself, with inpl"):
        convfc.to_fc(model)
    convfc.to_fc(model, inplace=True)
    (layer,) = model.children()
    assert isinstance(layer, PatchConv)
    call = model if make is None else model.f() if name == "weak" else model.f
    call(X.float()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("inplace", [True, False])
def test_a_set_of_weak_references_is_refused(inplace: bool) -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3))
    model.f = weakref.WeakSet([model[0]])
    with pytest.raises(UnsupportedLayer, match="inside a WeakSet"):
        convfc.to_fc(model, inplace=inplace)


# ------------------------------------------------------------------------------ hooks, compilation


def test_a_hook_that_is_bound_to_a_layer_moves_to_the_new_one() -> None:
    calls: list[nn.Module] = []

    def note(self: nn.Module, *_: Any) -> None:
        calls.append(self)

    model = nn.Sequential(nn.Conv2d(2, 2, 3))
    model[0].register_forward_hook(types.MethodType(note, model[0]))
    model[0].register_load_state_dict_pre_hook(note)
    for inplace in (False, True):
        after = convfc.to_fc(model, inplace=inplace)
        after(X.float())
        after.load_state_dict(after.state_dict())
        assert [call is after[0] for call in calls] == [True, True]
        calls.clear()


def test_a_record_of_a_hook_is_no_obstacle() -> None:
    seen: dict[nn.Module, Tensor] = {}
    model = nn.Sequential(nn.Conv2d(2, 2, 3))
    model[0].register_forward_hook(lambda layer, args, y: seen.update({layer: y.detach()}))
    model(X.float())
    after = convfc.to_fc(model)
    after(X.float())
    assert list(seen) == [model[0], after[0]]


def test_compiled_layers_and_models_run_the_new_layer() -> None:
    part, same = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)
    same.compile(backend="eager")
    whole = torch.compile(nn.Sequential(nn.Conv2d(2, 2, 3)), backend="eager")
    for model, inplace in (
        (nn.Sequential(torch.compile(part, backend="eager")), True),
        (nn.Sequential(same), False),
        (whole, True),
    ):
        model(X.float())
        after = convfc.to_fc(model, inplace=inplace)
        after(X.float()).sum().backward()
        assert any(isinstance(part, PatchConv) for part in after.modules())
        assert all(p.grad is not None for p in after.parameters())


# ----------------------------------------------------------------------------------- the search


def test_circles_end() -> None:
    model = Held("list")
    model.held.append(model.held)
    model.held.append({"model": model, "part": types.SimpleNamespace(up=model, held=model.held)})
    object.__setattr__(model.conv, "parent", (model, [model.conv]))
    after = convfc.to_fc(model)
    assert after.held[0] is after.conv
    assert after.held[1] is after.held
    assert after.held[2]["part"].held is after.held
    assert after.conv.parent[0] is after
    assert after.conv.parent[1][0] is after.conv
    check_is_called(after, model)


def test_what_is_held_in_many_ways_is_looked_into_once() -> None:
    """Two to the 60 ways lead to the layer."""
    relu = nn.ReLU()
    held: Any = (relu,)
    for _ in range(60):
        held = (held, held)
    model = nn.Sequential(relu)
    model.held = held
    assert blocked_references(model, {id(relu)}, copied=True) == {}


def test_an_exchange_that_is_refused_changes_nothing() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Tanh())
    relu, tanh = model
    model.held = [relu]
    model.f = closed(tanh)
    new = {id(relu): nn.SiLU(), id(tanh): nn.GELU()}
    with pytest.raises(UnsupportedLayer, match=r"^1: f refers to it.*it cannot be exchanged"):
        exchange(model, new)
    assert (model[0], model[1], model.held) == (relu, tanh, [relu])
