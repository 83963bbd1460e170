"""What cannot become wider without another function is refused: the place, why, a way out."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from morphism_models import NETWORKS, example, mlp, trained
from networks import net
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import convfc
from convfc.errors import ArgumentError, ShapeError, UnsupportedLayer, UnsupportedModel
from convfc.methods.morphism import widen

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.ones(2, 3, 6, 6)
LINE = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(0))
ROWS = torch.ones(2, 3)


def through(function: Callable[[Tensor], Tensor], norm: nn.Module | None = None) -> nn.Module:
    """A CONV layer of 4 filters, a function of its output, and an FC layer that reads it."""
    conv, norm = nn.Conv2d(3, 4, 3, padding=1), nn.Identity() if norm is None else norm
    head = nn.Linear(function(norm(conv(X))).flatten(1).shape[1], 2)
    layers = {"conv": conv, "norm": norm, "head": head}
    return net(lambda m, x: m.head(function(m.norm(m.conv(x))).flatten(1)), **layers)


def pair(
    function: Callable[..., Tensor], one: int, two: int, head: int | nn.Module, groups: int = 1
) -> nn.Module:
    """Two CONV layers on 6 channels, the second with one group more, whatever meets, a reader."""
    layers = {
        "stem": nn.Conv1d(1, 6, 1),
        "one": nn.Conv1d(6, one, 1, groups=groups),
        "two": nn.Conv1d(6, two, 1, groups=groups + 1 if groups > 1 else 1),
        "head": nn.Conv1d(head, 1, 1) if isinstance(head, int) else head,
    }

    def wiring(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head(function(m.one(x), m.two(x)))

    return net(wiring, **layers)


FUNCTIONS = {
    "view-with-a-number": (
        lambda x: x.view(2, 4 * 36),
        "view() at the model's own forward: their number, 144, is written down there",
        "x.flatten(1)",
    ),
    "channel-shuffle": (
        lambda x: x.view(x.size(0), 2, 2, 6, 6).transpose(1, 2).flatten(1, 2),
        "view() at the model's own forward: it divides them over several axes",
        "widen a layer whose units do not get there",
    ),
    "pixel-shuffle": (lambda x: functional.pixel_shuffle(x, 2), "pixel_shuffle()", "each channel"),
    "chunk": (lambda x: x.chunk(3, dim=1)[0], "chunk()", "not known to leave each of them"),
    "index": (lambda x: x[:, :2], "getitem() at the model's own forward: it is not", "of them"),
    "order": (
        lambda x: x[:, [1, 0, 3, 2]],
        "getitem() at the model's own forward: it is",
        "of them",
    ),
    "softmax": (lambda x: x.softmax(1), "softmax()", "it divides by a sum over them"),
    "mean": (lambda x: x.mean(1, keepdim=True), "mean()", "a copy would count twice"),
    "layer-norm": (
        lambda x: functional.layer_norm(x, (4, 6, 6)),
        "layer_norm()",
        "normalises over",
    ),
    "layer-norm-last": (
        lambda x: functional.layer_norm(x.transpose(1, 3), (4,)).transpose(1, 3),
        "layer_norm()",
        "normalises over",
    ),
    "size": (lambda x: x / x.size(1), "size()", "the forward computes with their number"),
    "pad": (lambda x: functional.pad(x, (0, 0, 0, 0, 0, 1)), "pad()", "works along the axis"),
    "matmul": (lambda x: x @ x.mT, "getattr()", "not known to leave each of them"),
    "expand": (lambda x: x.expand(2, 4, 6, 6), "expand()", "not known to leave each of them"),
}
NORMS = {
    "BatchNorm2d": nn.BatchNorm2d(4, track_running_stats=False),
    "LayerNorm": nn.LayerNorm((4, 6, 6)),
    "Softmax": nn.Softmax(dim=1),
    "GLU": nn.GLU(dim=1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_that_look_at_several_units_are_refused(name: str):
    function, place, text = FUNCTIONS[name]
    with pytest.raises(UnsupportedLayer, match=re.escape(place)) as refusal:
        widen(through(function), "conv", width=8, example=X)
    message = str(refusal.value)
    assert message.startswith("conv: its units cannot become more, because of ")
    assert text in message
    assert "Remedy: " in message


@pytest.mark.parametrize("name", NORMS)
def test_modules_that_look_at_several_units_are_refused(name: str):
    model = through(lambda x: x, NORMS[name])
    with pytest.raises(UnsupportedLayer, match=f"because of {name} at norm: it ") as refusal:
        widen(model, "conv", width=8, example=X)
    assert "an operation there that works on each channel by itself" in str(refusal.value)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.reshape(x.shape[0], -1),
        lambda x: x.view(x.size(0), x.size(1) * x.size(2), -1),
        lambda x: x.mean(-1, keepdim=True).squeeze(-1).unsqueeze(2),
        lambda x: x.mean(-1, keepdim=True).expand_as(x),
        lambda x: torch.cat([x, functional.max_pool2d(x, 3, 1, 1)], 1),
        lambda x: torch.flatten(x.permute(0, 2, 3, 1), 1),
        lambda x: functional.pad(x, (1, 0)) * 2 + x.mean((2, 3), keepdim=True),
        lambda x: functional.interpolate(x, scale_factor=2.0),
        lambda x: functional.softmax(x, dim=-1).sum(dim=3),
        lambda x: x[:, None, :].flatten(1, 2)[:, :, None],
    ],
    ids=range(10),
)
def test_what_leaves_each_unit_to_itself_is_not_refused(function: Callable[[Tensor], Tensor]):
    model = trained(through(function))
    x = torch.randn(X.shape, generator=torch.Generator().manual_seed(0))
    for how in ("copy", "zero"):
        morph = widen(model, "conv", width=9, example=x, how=how)
        assert morph.certificate.holds, str(morph.certificate)
        assert morph.model.head.in_features == model.head.in_features // 4 * 9


def turned(layer: nn.Module) -> nn.Module:
    """A model with a layer that works along the axis of the units."""
    head = nn.Sequential(layer, nn.Conv1d(5, 1, 1))
    return pair(lambda a, b: (a + b).transpose(1, 2), 4, 4, head)


def joined(**options: Any) -> nn.Module:
    """Two layers side by side, read by a layer of two groups and by one without or depthwise."""
    sizes = {"one": nn.Conv1d(1, 2, 1), "two": nn.Conv1d(1, 2, 1), "head": nn.Conv1d(4, 1, 1)}
    depthwise = nn.Conv1d(4, 4, 1, groups=4)

    def wiring(m: Any, x: Tensor) -> Tensor:
        x = torch.cat([m.one(x), m.two(x)], 1)
        return m.head(m.plain(x) + m.depthwise(x))

    return net(wiring, **sizes, plain=nn.Conv1d(4, 4, 1, **options), depthwise=depthwise)


def side_by_side() -> nn.Module:
    """A depthwise layer on two layers side by side."""
    layers = {
        "one": nn.Conv1d(1, 2, 1),
        "two": nn.Conv1d(1, 1, 1),
        "depthwise": nn.Conv1d(3, 6, 1, groups=3),
        "head": nn.Conv1d(6, 1, 1),
    }
    return net(lambda m, x: m.head(m.depthwise(torch.cat([m.one(x), m.two(x)], 1))), **layers)


def tied() -> nn.Module:
    layers = [nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)]
    layers[4].weight = layers[2].weight
    return nn.Sequential(*layers)


class Stem(nn.Linear):
    """A layer with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).cumsum(-1)


def computed() -> nn.Module:
    model = mlp()
    parametrizations.weight_norm(model[2])
    return model


def kept() -> nn.Module:
    """Only the second layer's output is normalised, before it is added to the first one's."""
    return pair(lambda a, b: functional.normalize(b) + (a + b), 4, 4, 4)


def across(x: Tensor) -> Tensor:
    """The units stand on an axis that is normalised as a whole, beside the channels."""
    return functional.group_norm(x.transpose(1, 2), 2).transpose(1, 2)


def in_other_numbers() -> nn.Module:
    return pair(lambda a, b: torch.cat([a, b], 1) + torch.cat([b, a], 1), 2, 3, 5)


def added_to_its_input() -> nn.Module:
    layers = {"conv": nn.Conv1d(2, 2, 1), "head": nn.Conv1d(2, 1, 1)}
    return net(lambda m, x: m.head(x + m.conv(x)), **layers)


def called_on_two_kinds() -> nn.Module:
    layers = {name: nn.Linear(3, 3) for name in ("first", "twice", "head")}
    return net(lambda m, x: m.head(m.twice(m.first(x)) + m.twice(x)), **layers)


def own_forwards() -> nn.Module:
    return nn.Sequential(Stem(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), Stem(4, 2))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))


def one_for_many() -> nn.Module:
    return pair(lambda a, b: a * torch.sigmoid(b), 4, 1, 4)


def squeezed() -> nn.Module:
    return pair(lambda a, b: a.squeeze(1).unsqueeze(1) + b.mean((1, 2), keepdim=True), 1, 4, 1)


REFUSED: list[tuple[Callable[[], nn.Module], str, Tensor, str]] = [
    (mlp, "4", example("mlp"), "^4: its units .* the output of the model: the model"),
    (lambda: nn.Linear(3, 2), "", ROWS, "^the model itself: its units .* or add a layer"),
    (
        *(added_to_its_input, "conv", torch.ones(1, 2, 5)),
        r"add\(\) at .* whose number cannot change.* Remedy: put a CONV or FC layer of its own bet",
    ),
    (called_on_two_kinds, "first", ROWS, "Linear at twice: the layer is called several times"),
    (lambda: joined(groups=2), "one", LINE, "Conv1d at plain: its 2 groups do not divide them"),
    (joined, "depthwise", LINE, "made otherwise"),
    (side_by_side, "depthwise", LINE, "widen one of the layers before it"),
    (computed, "0", example("mlp"), "0: .* at 2: it is not a plain layer"),
    (lazy, "0", ROWS, "0: .*its weight has no size yet"),
    (mlp, "1", example("mlp"), "1: .*not a CONV or FC layer"),
    (tied, "0", ROWS, "2: .*also a parameter of 4 .*Remedy: untie them"),
    (own_forwards, "2", ROWS, r"^2: its units .* linear\(\) at 4: it is not known"),
    (
        lambda: through(across),
        "conv",
        X,
        r"conv: .*group_norm\(\) at .* it normalises over several",
    ),
    (kept, "one", LINE, r"one: .* normalize\(\)"),
    (kept, "two", LINE, r"two: .* normalize\(\)"),
    (in_other_numbers, "one", LINE, "one: .* or that are made otherwise"),
    (lambda: turned(nn.Conv1d(5, 5, 3)), "one", LINE, r"Conv1d at head\.0: it sums over neigh"),
    (lambda: turned(nn.BatchNorm1d(5)), "one", LINE, r"BatchNorm1d at head\.0: it looks at sev"),
    (one_for_many, "two", LINE, r"two: .*mul\(\).* a single one stands for many"),
    (squeezed, "one", LINE, r"one: .*squeeze\(\).* it takes the axis away"),
]


@pytest.mark.parametrize(("make", "name", "x", "text"), REFUSED, ids=range(len(REFUSED)))
def test_units_that_cannot_become_more_are_refused(
    make: Callable[[], nn.Module], name: str, x: Tensor, text: str
):
    with pytest.raises(UnsupportedLayer, match=text):
        widen(make(), name, factor=2, example=x)


def test_layers_beside_those_that_are_refused_become_wider():
    model = nn.Sequential(nn.Conv1d(1, 3, 1), nn.Conv1d(3, 3, 1, groups=3), nn.Conv1d(3, 1, 1))
    assert widen(model, "1", width=4, example=LINE).certificate.holds
    morph = widen(trained(side_by_side()), "one", width=4, example=LINE)
    assert morph.certificate.holds
    assert (morph.model.depthwise.groups, morph.model.depthwise.out_channels) == (5, 10)
    assert widen(trained(one_for_many()), "one", width=6, example=LINE).certificate.holds


@pytest.mark.parametrize("name", ["stem", "one", "two"])
def test_groups_of_two_kinds_divide_the_units_together(name: str):
    """Layers of 2 and of 3 groups read the same units, and their outputs are added."""
    model = trained(pair(lambda a, b: a + b, 6, 6, 6, groups=2))
    for width in (8, 9):
        with pytest.raises(ArgumentError, match="expected 6 or more, a multiple of 6"):
            widen(model, name, width=width, example=LINE)
    morph = widen(model, name, width=12, example=LINE)
    assert morph.certificate.holds, str(morph.certificate)


def test_layers_in_other_forms_are_taken_back_first():
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    for form in ("patch", "weight"):
        mixed = convfc.to_fc(conv, form=form, where="2")
        with pytest.raises(UnsupportedLayer, match=r"0: .* at 2: .*\. Remedy: .*convfc\.to_conv"):
            widen(mixed, "0", width=8, example=X)


# Forwards that are refused as wholes


def asks(m: Any, x: Tensor) -> Tensor:
    y = m.one(x)
    if y.sum() > 0:  # the line
        y = -y
    return m.two(y)


def in_training(m: Any, x: Tensor) -> Tensor:
    return m.two(m.one(x)) + m.one(x).sum() if m.training else m.two(m.one(x))


def turned_in_training(m: Any, x: Tensor) -> Tensor:
    y = m.one(x)
    z = y.contiguous().relu()
    return m.two(y - z if m.training else z - y)


@pytest.mark.parametrize(
    ("wiring", "text"),
    [
        (
            asks,
            r"^.*test_morphism_widening_refused\.py, line \d+, if y\.sum\(\) > 0:.*torch.fx cannot "
            "trace.*Remedy: write this line without asking what is in a tensor",
        ),
        (in_training, "^Net: its forward does something else in training.*aux_logits=False"),
        (turned_in_training, "^Net: its forward does something else in training"),
        (
            lambda m, x: m.two(m.one(x) + torch.ones(4)),
            r"^Net: its forward makes tensors .*register_b",
        ),
    ],
    ids=["traced", "training", "training-turned", "tensors"],
)
def test_forwards_that_cannot_be_followed_are_refused(
    wiring: Callable[[Any, Tensor], Tensor], text: str
):
    model = net(wiring, one=nn.Linear(3, 4), two=nn.Linear(4, 2))
    attributes = set(vars(model))
    with pytest.raises(UnsupportedModel, match=text):
        widen(model, "one", width=8, example=ROWS)
    assert set(vars(model)) == attributes


def test_an_example_that_does_not_run_is_refused():
    with pytest.raises(ShapeError, match=r"^example: the model does not run on this input"):
        widen(mlp(), "0", width=8, example=torch.ones(2, 7))
    with pytest.raises(ShapeError, match="example: the example is empty"):
        widen(mlp(), "0", width=8, example=torch.ones(0, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 8, "factor": 2}, "width: .*got both"),
        ({"factor": float("nan")}, "factor: a number out of its range"),
        ({"width": 8, "noise": -1}, "noise: a number out of its range; .* 0 or more; got -1"),
        ({"width": 8, "split": "even"}, "split: there is no such split; expected 'equal' or"),
        ({"width": 8, "how": "zero", "split": "random"}, "split: .*no copies to tell apart"),
    ],
    ids=str,
)
def test_options_without_meaning_are_refused(options: dict, message: str):
    with pytest.raises(ArgumentError, match=message):
        widen(mlp(), "0", example=example("mlp"), **options)


def test_a_width_that_groups_do_not_divide_is_refused_and_a_factor_is_rounded_up():
    model, x = trained(NETWORKS["separable"].make()), example("separable")
    for name, width, text in (("6", 9, "6 or more, a multiple of 2"), ("3", 10, "4; got 10")):
        with pytest.raises(ArgumentError, match=f"{name}, width: this width does .* {text}"):
            widen(model, name, width=width, example=x)
    assert widen(model, "6", factor=1.1, example=x).model[6].out_channels == 8
    assert widen(mlp(), "0", factor=1.2, example=example("mlp")).model[0].out_features == 6
    ten = nn.Sequential(nn.Linear(1, 10), nn.ReLU(), nn.Linear(10, 1))  # 1.1 is not a binary number
    assert widen(ten, "0", factor=1.1, example=torch.ones(1, 1)).model[0].out_features == 11
