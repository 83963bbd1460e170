"""What cannot become wider without another function is refused: the place, why, a way out."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from morphism_models import NETWORKS, Tokens, example, mlp, trained
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import convfc
from convfc.errors import (
    ArgumentError,
    ShapeError,
    UnsupportedLayer,
    UnsupportedModel,
)
from convfc.methods.morphism import widen

pytestmark = pytest.mark.usefixtures("one_thread")


class Through(nn.Module):
    """A CONV layer of 4 filters, a function of its output, and an FC layer that reads it."""

    def __init__(self, function: Callable[[Tensor], Tensor], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.Identity() if norm is None else norm
        self.function = function
        with torch.no_grad():
            features = (
                self.function(self.norm(self.conv(torch.ones(2, 3, 6, 6)))).flatten(1).shape[1]
            )
        self.head = nn.Linear(features, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.function(self.norm(self.conv(x))).flatten(1))
        return y


X = torch.ones(2, 3, 6, 6)

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
    "softmax": (lambda x: x.softmax(1), "softmax()", "it divides by a sum over them"),
    "mean": (lambda x: x.mean(1, keepdim=True), "mean()", "a copy would count twice"),
    "group-norm": (lambda x: functional.group_norm(x, 2), "group_norm()", "normalises over"),
    "size": (lambda x: x / x.size(1), "size()", "the forward computes with their number"),
    "pad": (lambda x: functional.pad(x, (0, 0, 0, 0, 0, 1)), "pad()", "works along the axis"),
    "matmul": (lambda x: x @ x.mT, "getattr()", "not known to leave each of them"),
    "expand": (lambda x: x.expand(2, 4, 6, 6), "expand()", "their number, 4, is written down"),
}
NORMS = {
    "GroupNorm": nn.GroupNorm(2, 4),
    "InstanceNorm2d": nn.InstanceNorm2d(4, affine=True),
    "BatchNorm2d": nn.BatchNorm2d(4, track_running_stats=False),
    "LayerNorm": nn.LayerNorm((4, 6, 6)),
    "LocalResponseNorm": nn.LocalResponseNorm(2),
    "Softmax": nn.Softmax(dim=1),
    "ChannelShuffle": nn.ChannelShuffle(2),
    "GLU": nn.GLU(dim=1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_that_look_at_several_units_are_refused(name: str):
    function, place, text = FUNCTIONS[name]
    with pytest.raises(UnsupportedLayer, match=re.escape(place)) as refusal:
        widen(Through(function), "conv", width=8, example=X)
    message = str(refusal.value)
    assert message.startswith("conv: its units cannot become more, because of ")
    assert text in message
    assert "Remedy: " in message


@pytest.mark.parametrize("name", NORMS)
def test_modules_that_look_at_several_units_are_refused(name: str):
    model = Through(lambda x: x, NORMS[name])
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
    ],
    ids=range(9),
)
def test_what_leaves_each_unit_to_itself_is_not_refused(function: Callable[[Tensor], Tensor]):
    model = trained(Through(function))
    x = torch.randn(X.shape, generator=torch.Generator().manual_seed(0))
    for how in ("copy", "zero"):
        morph = widen(model, "conv", width=9, example=x, how=how)
        assert morph.certificate.holds, str(morph.certificate)
        assert morph.model.head.in_features == model.head.in_features // 4 * 9


def test_outputs_of_the_model_keep_their_number():
    with pytest.raises(
        UnsupportedLayer, match=r"4: its units .* the output of the model: the model"
    ):
        widen(mlp(), "4", width=8, example=example("mlp"))
    with pytest.raises(UnsupportedLayer, match=r"^the model itself: its units .* or add a layer"):
        widen(nn.Linear(3, 2), "", width=8, example=torch.ones(1, 3))


def test_what_is_added_to_the_input_keeps_its_number():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv1d(2, 2, 1), nn.Conv1d(2, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(x + self.conv(x))
            return y

    with pytest.raises(UnsupportedLayer, match=r"add\(\) at .* whose number cannot change") as no:
        widen(Residual(), "conv", width=4, example=torch.ones(1, 2, 5))
    assert "put a CONV or FC layer of its own between the two" in str(no.value)


def test_a_layer_called_on_units_of_different_kinds_is_refused():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.twice = nn.Linear(3, 3), nn.Linear(3, 3)
            self.head = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.twice(self.first(x)) + self.twice(x))
            return y

    with pytest.raises(
        UnsupportedLayer, match="Linear at twice: the layer is called several times"
    ):
        widen(Shared(), "first", width=6, example=torch.ones(2, 3))


def test_a_grouped_layer_that_cuts_units_of_a_concatenation_is_refused():
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv1d(1, 2, 1), nn.Conv1d(1, 2, 1)
            self.groups, self.depthwise = nn.Conv1d(4, 4, 1, groups=2), nn.Conv1d(4, 4, 1, groups=4)
            self.head = nn.Conv1d(4, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.one(x), self.two(x)], 1)
            y: Tensor = self.head(self.groups(x) + self.depthwise(x))
            return y

    x = torch.ones(1, 1, 3)
    with pytest.raises(UnsupportedLayer, match="Conv1d at groups: its 2 groups do not divide them"):
        widen(Cut(), "one", width=4, example=x)
    model = Cut()
    model.groups = nn.Conv1d(4, 4, 1)
    with pytest.raises(UnsupportedLayer, match="made otherwise"):
        widen(model, "depthwise", width=8, example=x)
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Conv1d(3, 3, 1, groups=3), nn.Conv1d(3, 1, 1))
    assert widen(model, "1", width=4, example=torch.ones(1, 2, 3)).certificate.holds


def test_a_depthwise_layer_on_a_concatenation_names_the_layers_before_it():
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv1d(1, 2, 1), nn.Conv1d(1, 1, 1)
            self.depthwise, self.head = nn.Conv1d(3, 6, 1, groups=3), nn.Conv1d(6, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.depthwise(torch.cat([self.one(x), self.two(x)], 1)))
            return y

    x = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UnsupportedLayer, match="widen one of the layers before it"):
        widen(Joined(), "depthwise", width=8, example=x)
    morph = widen(trained(Joined()), "one", width=4, example=x)
    assert morph.certificate.holds
    assert (morph.model.depthwise.groups, morph.model.depthwise.out_channels) == (5, 10)


def test_layers_in_other_forms_are_taken_back_first():
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    for form in ("patch", "weight"):
        with pytest.raises(UnsupportedLayer, match=r"0: .*\. Remedy: .*convfc\.to_conv"):
            widen(convfc.to_fc(conv, form=form), "0", width=8, example=X)
        mixed = convfc.to_fc(conv, form=form, where="2")
        with pytest.raises(UnsupportedLayer, match=r"0: .* at 2: .*\. Remedy: .*convfc\.to_conv"):
            widen(mixed, "0", width=8, example=X)
    unrolled = convfc.unroll(conv, X)
    with pytest.raises(UnsupportedLayer, match=r"0: .*\. Remedy: .*convfc\.to_conv"):
        widen(unrolled, "0", width=8, example=X)


def test_weights_that_are_computed_are_refused():
    model = mlp()
    parametrizations.weight_norm(model[2])
    with pytest.raises(UnsupportedLayer, match=r"0: .* at 2: it is no plain layer"):
        widen(model, "0", width=8, example=example("mlp"))


def test_lazy_and_other_layers_are_refused():
    lazy = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    with pytest.raises(UnsupportedLayer, match=r"0: .*its weight has no size yet"):
        widen(lazy, "0", width=8, example=torch.ones(1, 2))
    with pytest.raises(UnsupportedLayer, match="0: it is lazy, and running the model"):
        widen(lazy, "1", width=8, example=torch.ones(1, 2))
    with pytest.raises(UnsupportedLayer, match=r"1: .*no CONV or FC layer"):
        widen(mlp(), "1", width=8, example=example("mlp"))


def test_tied_parameters_are_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[4].weight = model[2].weight
    with pytest.raises(UnsupportedLayer, match=r"2: .*also a parameter of 4 .*Remedy: untie them"):
        widen(model, "0", width=6, example=torch.ones(1, 3))


def test_a_layer_with_a_forward_of_its_own_is_refused():
    class Stem(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).cumsum(-1)

    model = nn.Sequential(Stem(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), Stem(4, 2))
    with pytest.raises(
        UnsupportedLayer, match=r"^2: its units .* linear\(\) at 4: it is not known"
    ):
        widen(model, "2", width=6, example=torch.ones(1, 3))


def test_a_forward_that_cannot_be_traced_is_refused_with_its_line():
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.one(x)
            if y.sum() > 0:  # the line
                y = -y
            z: Tensor = self.two(y)
            return z

    with pytest.raises(UnsupportedModel, match=r"torch.fx cannot trace") as refusal:
        widen(Asks(), "one", width=8, example=torch.ones(1, 3))
    assert re.match(
        r".*test_morphism_widening_refused\.py, line \d+, if y\.sum\(\) > 0:", str(refusal.value)
    )
    assert "Remedy: write this line without asking what is in a tensor" in str(refusal.value)


def test_tensors_that_a_forward_makes_are_refused_and_leave_nothing_in_the_model():
    model = Through(lambda x: x + torch.ones(4, 1, 1))
    attributes = set(vars(model))
    with pytest.raises(UnsupportedModel, match=r"^Through: its forward makes tensors .*register_b"):
        widen(model, "conv", width=8, example=X)
    assert set(vars(model)) == attributes


def test_a_forward_with_other_calls_in_training_is_refused():
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.aux = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(x)
            z: Tensor = self.two(y)
            return z + self.aux(y) if self.training else z

    with pytest.raises(UnsupportedModel, match="Auxiliary: its forward does something else in tra"):
        widen(Auxiliary(), "one", width=8, example=torch.ones(1, 3))


def test_an_example_that_does_not_run_is_refused():
    with pytest.raises(ShapeError, match=r"^example: the model does not run on this input"):
        widen(mlp(), "0", width=8, example=torch.ones(2, 7))
    with pytest.raises(ShapeError, match="example: the example is empty"):
        widen(mlp(), "0", width=8, example=torch.ones(0, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "width: the new width is one number; expected one of width= and factor="),
        ({"width": 8, "factor": 2}, "width: .*got both"),
        ({"width": 4}, "0, width: a layer can only become wider; expected 5 or more; got 4"),
        (
            {"width": 8.0},
            "width: a size is not an integer; .*got 8.0",
        ),
        (
            {"factor": 0.5},
            "factor: a number out of its range; .* 1 or more; got 0.5",
        ),
        ({"factor": "2"}, "factor: a number out of its range; .*got '2'"),
        ({"factor": float("nan")}, "factor: a number out of its range"),
        (
            {"width": 8, "noise": -1},
            "noise: a number out of its range; .* 0 or more; got -1",
        ),
        ({"width": 8, "how": "clone"}, "how: there is no such way; expected 'copy' or 'zero'"),
        ({"width": 8, "split": "even"}, "split: there is no such split; expected 'equal' or"),
        ({"width": 8, "how": "zero", "noise": 0.1}, "noise: .*no copies to tell apart"),
        ({"width": 8, "how": "zero", "split": "random"}, "split: .*no copies to tell apart"),
    ],
    ids=str,
)
def test_options_without_meaning_are_refused(options: dict, message: str):
    with pytest.raises(ArgumentError, match=message):
        widen(mlp(), "0", example=example("mlp"), **options)


def test_a_width_that_groups_do_not_divide_is_refused_and_a_factor_is_rounded_up():
    model, x = trained(NETWORKS["separable"].make()), example("separable")
    with pytest.raises(
        ArgumentError,
        match=r"6, width: this width does .* expected 6 or more, a multiple of 2",
    ):
        widen(model, "6", width=9, example=x)
    with pytest.raises(
        ArgumentError,
        match=r"3, width: this width .* a multiple of 4; got 10",
    ):
        widen(model, "3", width=10, example=x)
    assert widen(model, "6", factor=1.1, example=x).model[6].out_channels == 8
    assert widen(mlp(), "0", factor=1.2, example=example("mlp")).model[0].out_features == 6
    ten = nn.Sequential(nn.Linear(1, 10), nn.ReLU(), nn.Linear(10, 1))  # 1.1 is no binary number
    assert widen(ten, "0", factor=1.1, example=torch.ones(1, 1)).model[0].out_features == 11


def test_what_is_added_to_a_normalised_token_is_refused():
    with pytest.raises(UnsupportedLayer, match=r"down: .*because of LayerNorm at norm"):
        widen(Tokens(), "down", width=8, example=example("tokens"))


def test_axes_that_are_given_in_numpys_words_are_refused():
    with pytest.raises(UnsupportedLayer, match=r"mean\(\) at the model's own forward"):
        widen(Through(lambda x: x.mean(axis=(2, 3))), "conv", width=8, example=X)


# Units of two layers that meet


class Pair(nn.Module):
    """Two layers on one stem, whatever is done with their outputs, and a layer that reads it."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.stem, self.one, self.two = layers["stem"], layers["one"], layers["two"]
        self.function, self.head = function, layers["head"]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y: Tensor = self.head(self.function(self.one(x), self.two(x)))
        return y


def pair(function: Callable[..., Tensor], one: int, two: int, read: int, groups: int = 1) -> Pair:
    """A `Pair` of CONV layers on 6 channels, the second one with one group more."""
    more = groups + 1 if groups > 1 else 1
    return Pair(
        function,
        stem=nn.Conv1d(1, 6, 1),
        one=nn.Conv1d(6, one, 1, groups=groups),
        two=nn.Conv1d(6, two, 1, groups=more),
        head=nn.Conv1d(read, 1, 1),
    )


LINE = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(0))


def test_a_reason_is_kept_when_units_turn_out_to_be_the_same():
    """Only the second layer's output is normalised, before it is added to the first one's."""
    model = pair(lambda a, b: functional.group_norm(b, 2) + (a + b), 4, 4, 4)
    for name in ("one", "two"):
        with pytest.raises(UnsupportedLayer, match=rf"{name}: .* group_norm\(\)"):
            widen(model, name, width=8, example=LINE)


@pytest.mark.parametrize("name", ["stem", "one", "two"])
def test_groups_of_two_kinds_divide_the_units_together(name: str):
    """Layers of 2 and of 3 groups read the same units, and their outputs are added."""
    model = trained(pair(lambda a, b: a + b, 6, 6, 6, groups=2))
    for width in (8, 9):
        with pytest.raises(ArgumentError, match="expected 6 or more, a multiple of 6"):
            widen(model, name, width=width, example=LINE)
    morph = widen(model, name, width=12, example=LINE)
    assert morph.certificate.holds, str(morph.certificate)


def test_units_in_other_numbers_are_not_the_same():
    model = pair(lambda a, b: torch.cat([a, b], 1) + torch.cat([b, a], 1), 2, 3, 5)
    for name in ("one", "two"):
        with pytest.raises(UnsupportedLayer, match=rf"{name}: .* or that are made otherwise"):
            widen(model, name, width=6, example=LINE)


def test_layers_along_the_axis_of_the_units_are_refused():
    def turned(layer: nn.Module) -> nn.Module:
        model = pair(lambda a, b: (a + b).transpose(1, 2), 4, 4, 5)
        model.head = nn.Sequential(layer, model.head)
        return model

    with pytest.raises(UnsupportedLayer, match=r"Conv1d at head\.0: it sums over neighbouring"):
        widen(turned(nn.Conv1d(5, 5, 3)), "one", width=6, example=LINE)
    with pytest.raises(UnsupportedLayer, match=r"BatchNorm1d at head\.0: it looks at several"):
        widen(turned(nn.BatchNorm1d(5)), "one", width=6, example=LINE)


def test_one_unit_that_stands_for_many_is_refused():
    model = trained(pair(lambda a, b: a * torch.sigmoid(b), 4, 1, 4))
    with pytest.raises(UnsupportedLayer, match=r"two: .*mul\(\).* a single one stands for many"):
        widen(model, "two", width=2, example=LINE)
    assert widen(model, "one", width=6, example=LINE).certificate.holds
    model = pair(lambda a, b: a.squeeze(1).unsqueeze(1) + b.mean((1, 2), keepdim=True), 1, 4, 1)
    with pytest.raises(UnsupportedLayer, match=r"one: .*squeeze\(\).* it takes the axis away"):
        widen(model, "one", width=2, example=LINE)
