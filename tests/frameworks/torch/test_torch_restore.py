"""to_conv: the FC forms go back to the CONV layers they came from, bit for bit, as they are now."""

from __future__ import annotations

import pytest
import torch
from networks import two_convs
from torch import Tensor, nn
from torch.nn.utils import prune

import convfc
from convfc.errors import NothingToConvert, UnsupportedLayer, UnsupportedLayerWarning
from convfc.frameworks.torch import PatchConv
from convfc.frameworks.torch.read import matrix_to_weight

FORMS = ("patch", "weight")


class Stem(nn.Conv2d):
    """A class of the user's own, whose forward is PyTorch's."""


@pytest.mark.parametrize("form", FORMS)
def test_in_place(form: str) -> None:
    model = convfc.to_fc(two_convs(), form=form)
    bias = model[0].bias
    assert convfc.to_conv(model, inplace=True) is model
    assert model[0].bias is bias
    bare = convfc.to_fc(nn.Conv2d(3, 4, 3), form="weight")
    assert convfc.to_conv(bare, inplace=True) is bare


@pytest.mark.parametrize("form", FORMS)
def test_present_attributes_count(form: str) -> None:
    layer = Stem(3, 4, 3, padding=1, dtype=torch.float64)
    layer.note = "kept"
    layer.register_buffer("seen", torch.tensor(3))
    layer.eval().weight.requires_grad_(False)
    fc = convfc.to_fc(layer, form=form)
    fc.stride, fc.padding, fc.later = (2, 1), (0, 2), "also kept"
    fc.train()
    back = convfc.to_conv(fc)
    assert type(back) is Stem
    assert (back.stride, back.padding) == ((2, 1), (0, 2))
    assert (back.note, back.later) == ("kept", "also kept")
    assert (back.seen.item(), back.training) == (3, True)
    assert (back.weight.requires_grad, back.bias.requires_grad) == (False, True)


@pytest.mark.parametrize("form", FORMS)
def test_frozen_groups_come_back_frozen(form: str) -> None:
    layer = nn.Conv2d(4, 6, 3, groups=2)
    layer.weight.requires_grad_(False)
    back = convfc.to_conv(convfc.to_fc(layer, form=form))
    assert (back.weight.requires_grad, back.bias.requires_grad) == (False, True)


@pytest.mark.parametrize("groups", [1, 2, 40])
@pytest.mark.parametrize("form", FORMS)
def test_layers_that_share_parameters_go_on_sharing_them(form: str, groups: int) -> None:
    c = max(4, groups)
    model = nn.Sequential(
        nn.Conv2d(c, c, 3, groups=groups), nn.Conv2d(c, c, 3, dilation=2, groups=groups)
    )
    model[1].weight, model[1].bias = model[0].weight, model[0].bias
    back = convfc.to_conv(convfc.to_fc(model, form=form))
    assert back[0].weight is back[1].weight
    assert torch.equal(back[0].weight, model[0].weight)
    if groups != 2 or form == "weight":
        assert back[0].bias is back[1].bias


@pytest.mark.parametrize("groups", [1, 40])
@pytest.mark.parametrize("form", FORMS)
def test_a_weight_shared_with_a_layer_that_stays_is_refused(form: str, groups: int) -> None:
    model = nn.Sequential(*(nn.Conv2d(40, 40, 3, groups=groups) for _ in range(2)))
    model[1].weight = model[0].weight
    fc = convfc.to_fc(model, form=form)
    with pytest.raises(UnsupportedLayer, match=r"^0: its FC weight is also a parameter of 1\."):
        convfc.to_conv(fc, where="0")


def test_where_selects_among_the_modules_of_the_model_itself() -> None:
    fc = convfc.to_fc(two_convs())
    for where in ("2.*", lambda name, module: module is fc[2][0] and name == "2.0"):
        back = convfc.to_conv(fc, where=where)
        assert isinstance(back[0], PatchConv)
        assert type(back[2][0]) is nn.Conv2d


def test_nothing_to_convert() -> None:
    message = r"^where: where= selects no layer in .* form; expected .* of 0, 2\.0; got 9\."
    with pytest.raises(NothingToConvert, match=message):
        convfc.to_conv(convfc.to_fc(two_convs()), where="9")


def test_not_strict_leaves_and_lists() -> None:
    fc = convfc.to_fc(two_convs())
    fc[0].fc = nn.Bilinear(2, 2, 2)
    with pytest.raises(UnsupportedLayer, match=r"^0: its FC part is a Bilinear; it cannot become"):
        convfc.to_conv(fc)
    with pytest.raises(UnsupportedLayer, match="merge or take out what the tool has put there"):
        convfc.to_conv(fc, inplace=True)
    assert isinstance(fc[2][0], PatchConv)  # an error leaves the model alone
    with pytest.warns(UnsupportedLayerWarning, match=r"0 \(its FC part is a Bilinear\)"):
        back = convfc.to_conv(fc, strict=False)
    assert isinstance(back[0], PatchConv)
    assert type(back[2][0]) is nn.Conv2d


class Twofold(nn.Module):
    def forward(self, matrix: Tensor) -> Tensor:
        return 2 * matrix


def test_a_further_parametrization_of_the_weight_form_becomes_permanent() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model[1].weight = model[0].weight
    fc = convfc.to_fc(model, form="weight")
    nn.utils.parametrize.register_parametrization(fc[0], "weight", Twofold(), unsafe=True)
    back = convfc.to_conv(fc)
    assert torch.equal(back[0].weight, 2 * model[0].weight)
    assert torch.equal(back[1].weight, model[1].weight)


def test_weight_forms_that_hide_their_matrix_are_refused() -> None:
    fc = convfc.to_fc(two_convs(), form="weight")
    prune.l1_unstructured(fc[0].parametrizations.weight, "original", amount=0.5)
    with pytest.raises(UnsupportedLayer, match=r"computed before every call.*prune\.remove"):
        convfc.to_conv(fc)
    prune.remove(fc[0].parametrizations.weight, "original")
    matrix = fc[0].parametrizations.weight.original
    weight = convfc.to_conv(fc)[0].weight
    want = matrix_to_weight(matrix, (len(matrix), 3, 3, 3), transposed=False, groups=1)
    assert torch.equal(weight, want)
    assert torch.count_nonzero(weight) == weight.numel() // 2
    fc[0].parametrizations.weight[0].register_forward_hook(lambda m, args, out: out)
    with pytest.raises(UnsupportedLayer, match=r"hooks stand on its parametrization.*remove"):
        convfc.to_conv(fc)


def test_no_random_number_is_drawn() -> None:
    fc = convfc.to_fc(two_convs())
    fc[0].fc = nn.Sequential(nn.Linear(27, 2), nn.Linear(2, 4))
    state = torch.get_rng_state()
    convfc.to_conv(fc)
    assert torch.equal(torch.get_rng_state(), state)
