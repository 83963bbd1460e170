"""Units of two layers that meet: which are the same, how groups divide them, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from morphism_models import trained
from torch import Tensor, nn
from torch.nn import functional

from convfc.errors import ArgumentError, UnsupportedLayer
from convfc.methods.morphism import widen

pytestmark = pytest.mark.usefixtures("one_thread")


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
