"""verify says no to another geometry, also on an input that does not show it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import net
from proofs import assert_proven, only
from torch import Tensor, nn
from torch_fixtures import in_form

import convfc
from convfc import verify

each_pair = pytest.mark.parametrize(
    ("first", "second"),
    [("native", "patch"), ("patch", "weight"), ("weight", "unrolled"), ("unrolled", "native")],
)


def network_of(layer: nn.Module, form: str, x: Tensor) -> nn.Module:
    return in_form(nn.Sequential(copy.deepcopy(layer)), form, x)


def with_weights_of(layer: nn.Module, other: nn.Module) -> nn.Module:
    other.load_state_dict(layer.state_dict())
    return other


UNSEEN: dict[str, tuple[nn.Module, nn.Module, tuple[int, ...], str]] = {
    "stride, one window": (
        nn.Conv2d(2, 3, 3),
        nn.Conv2d(2, 3, 3, stride=2),
        (3, 3),
        "0: its stride; expected (1, 1), got (2, 2)",
    ),
    "stride, one window per axis": (
        nn.Conv1d(2, 3, 3, padding=1, stride=2),
        nn.Conv1d(2, 3, 3, padding=1, stride=3),
        (2,),
        "0: its stride; expected (2,), got (3,)",
    ),
    "stride, one position of a transposed layer": (
        nn.ConvTranspose2d(2, 3, 3, stride=2),
        nn.ConvTranspose2d(2, 3, 3),
        (1, 1),
        "0: its stride; expected (2, 2), got (1, 1)",
    ),
    "padding mode, one element": (
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate"),
        (1, 1),
        "0: its padding_mode; expected circular, got replicate",
    ),
}


@each_pair
@pytest.mark.parametrize(("layer", "other", "size", "reason"), UNSEEN.values(), ids=UNSEEN)
def test_what_this_input_does_not_show(
    layer: nn.Module, other: nn.Module, size: tuple[int, ...], reason: str, first: str, second: str
):
    x = torch.randn(2, 2, *size)
    before = network_of(layer, first, x)
    assert_proven(verify(before, network_of(layer, second, x), x))
    after = network_of(with_weights_of(layer, other), second, x)
    certificate = verify(before, after, x)
    assert not certificate.holds
    assert certificate.failures == (reason,)


NO_INPUT_SHOWS: dict[str, tuple[nn.Module, nn.Module]] = {
    "dilation of one tap": (nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1, dilation=2)),
    "dilation of the axis with one tap": (
        nn.Conv2d(2, 3, (1, 3), dilation=(3, 2)),
        nn.Conv2d(2, 3, (1, 3), dilation=(1, 2)),
    ),
    "an output padding that only a dilation of no effect allows": (
        nn.ConvTranspose2d(2, 3, (1, 3), dilation=(2, 1), output_padding=(1, 0)),
        nn.ConvTranspose2d(2, 3, (1, 3), dilation=(3, 1), output_padding=(1, 0)),
    ),
    "padding mode without padding": (
        nn.Conv2d(2, 3, 3),
        nn.Conv2d(2, 3, 3, padding_mode="reflect"),
    ),
    "same and numbers": (nn.Conv2d(2, 3, 3, padding="same"), nn.Conv2d(2, 3, 3, padding=1)),
    "valid and numbers": (nn.Conv2d(2, 3, 3, padding="valid"), nn.Conv2d(2, 3, 3)),
    "transposed layer of one tap": (
        nn.Conv2d(2, 2, 1, groups=2),
        nn.ConvTranspose2d(2, 2, 1, groups=2),
    ),
}


@each_pair
@pytest.mark.parametrize(("layer", "other"), NO_INPUT_SHOWS.values(), ids=NO_INPUT_SHOWS)
def test_what_no_input_shows_is_no_difference(
    layer: nn.Module, other: nn.Module, first: str, second: str
):
    x = torch.randn(2, 2, 5, 6)
    other = with_weights_of(layer, other)
    assert_proven(verify(network_of(layer, first, x), network_of(other, second, x), x))
    assert_proven(verify(network_of(other, first, x), network_of(layer, second, x), x))


@pytest.mark.parametrize(
    "rest", [{"stride": 2}, {"padding": 1}, {"dilation": 2, "output_padding": 1}], ids=str
)
def test_a_transposed_layer_of_one_tap_that_moves_elements_is_another(rest: dict[str, Any]):
    layer = nn.Conv1d(1, 1, 1, stride=rest.get("stride", 1), padding=rest.get("padding", 0))
    other = with_weights_of(layer, nn.ConvTranspose1d(1, 1, 1, **rest))
    certificate = verify(layer, other, torch.randn(1, 1, 4))
    assert "the model: its transposed; expected False, got True" in certificate.failures


@pytest.mark.parametrize("form", ["native", "patch", "weight"])
def test_an_output_size_changes_no_geometry(form: str):
    layer, x = nn.ConvTranspose2d(2, 3, 2, stride=2), torch.randn(1, 2, 3, 2)

    def asked(up: nn.Module) -> nn.Module:
        return net(lambda m, x: m.up(x, output_size=(6, 5)), up=up)

    before = asked(layer)
    assert_proven(verify(before, in_form(copy.deepcopy(before), form, x), x))
    other = with_weights_of(layer, nn.ConvTranspose2d(2, 3, 2, stride=2, output_padding=1))
    certificate = verify(before, in_form(asked(other), form, x), x)
    assert certificate.failures == ("up: its output_padding; expected (0, 0), got (1, 1)",)


def test_a_layer_that_is_not_called_has_a_geometry_too():
    parts = {"used": nn.Conv1d(1, 1, 1), "left": nn.Conv1d(1, 1, 3, padding=1)}
    model, x = net(lambda m, x: m.used(x), **parts), torch.randn(1, 1, 4)
    other = copy.deepcopy(model)
    assert_proven(verify(model, convfc.to_fc(other), x))
    other.left.stride = (7,)
    expected = "left: its stride; expected (1,), got (7,)"
    assert expected in verify(model, convfc.to_fc(other), x).failures


def test_a_tool_s_layer_has_the_geometry_of_the_layer_around_it():
    model, x = nn.Sequential(nn.Conv2d(2, 3, 3)), torch.randn(1, 2, 3, 3)
    fc = convfc.to_fc(model)
    fc[0].fc = nn.Sequential(fc[0].fc, nn.Identity())
    assert verify(model, fc, x).holds
    fc[0].stride = (2, 2)
    assert verify(model, fc, x).failures == ("0: its stride; expected (1, 1), got (2, 2)",)


def test_a_forward_of_its_own_is_compared_as_a_function():
    """What its attributes say is not what it does."""

    class Whole(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.weight, self.bias)

    layer, x = nn.Conv2d(2, 3, 3), torch.randn(1, 2, 6, 6)
    whole = with_weights_of(layer, Whole(2, 3, 3, stride=2))
    certificate = verify(layer, whole, x)
    assert certificate.holds, str(certificate)
    assert only(certificate).own["output"].ratio is not None
