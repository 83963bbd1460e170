"""verify can say no: to every mistake that a conversion can make, and to a tool's own."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapters import OwnCall
from networks import net, network
from proofs import assert_proven, only
from torch import Tensor, nn
from torch_fixtures import in_form

import convfc
from convfc import verify

Sabotage = Callable[[nn.Sequential], Any]


def set_weight(name: str, change: Callable[[Tensor], Tensor]) -> Sabotage:
    def sabotage(model: nn.Sequential) -> None:
        weight = model.get_submodule(name).weight
        weight.data = change(weight.data.clone())

    return sabotage


def set_to(name: str, **attributes: Any) -> Sabotage:
    def sabotage(model: nn.Sequential) -> None:
        layer = model.get_submodule(name)
        for key, value in attributes.items():
            setattr(layer, key, value)

    return sabotage


def next_number(weight: Tensor) -> Tensor:
    weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(torch.inf))
    return weight


SABOTAGE: dict[str, tuple[Sabotage, str]] = {
    "one weight by a bit": (set_weight("first", next_number), "first: weight has other bits"),
    "swapped kernel axes": (set_weight("first", lambda w: w.mT), "first: output in float32"),
    "swapped channels": (set_weight("strided", lambda w: w[:, [1, 0, 2, 3]]), "strided: output"),
    "groups in another order": (set_weight("grouped", lambda w: w.roll(2, 0)), "grouped: output"),
    "no flip": (set_weight("up", lambda w: w.flip(2, 3)), "up: output in float32"),
    "transposed channels": (set_weight("up", lambda w: w.transpose(0, 1)), "up: output"),
    "stride order": (set_to("strided", stride=(1, 2)), "strided: its output; expected (1, 4"),
    "bias dropped": (
        set_to("last", bias=None),
        "last: its bias; expected (3,) of float32, got none",
    ),
    "buffer": (lambda m: m.norm.running_var.mul_(1.001), "network: norm.running_var; expected"),
    "other parameter": (lambda m: m.norm.weight.data[0].mul_(1.001), "network: norm.weight"),
    "other attribute": (set_to("norm", eps=1e-3), "network: output in float64"),
    "other function": (lambda m: m.add_module("relu", nn.SiLU()), "network: output in float64"),
    "batch statistics": (lambda m: m.train(), "network: output in float64"),
    "dtype": (lambda m: m.norm.half(), "network: norm.weight; expected (4,) of float32"),
}


@pytest.mark.parametrize(("sabotage", "reason"), SABOTAGE.values(), ids=SABOTAGE)
def test_it_says_no(sabotage: Sabotage, reason: str):
    model, x = network(), torch.randn(1, 3, 8, 8)
    after = copy.deepcopy(model)
    sabotage(after)
    certificate = verify(model, convfc.to_fc(after), x)
    assert not certificate.holds
    assert any(failure.startswith(reason) for failure in certificate.failures), str(certificate)
    json.dumps(certificate.to_dict(), allow_nan=False)


@pytest.mark.parametrize("form", ["patch", "weight", "native"])
def test_it_says_yes_without_sabotage(form: str):
    model, x = network(), torch.randn(1, 3, 8, 8)
    assert_proven(verify(model, in_form(copy.deepcopy(model), form, x), x))


def test_padding_off_by_one_at_the_same_output_size():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), torch.randn(1, 3, 8, 8)
    shifted = nn.Sequential(nn.ZeroPad2d((0, 2, 1, 1)), nn.Conv2d(3, 4, 3))
    shifted[1].load_state_dict(model[0].state_dict())
    certificate = verify(model, nn.Sequential(shifted), x)
    assert not certificate.holds
    assert any("0: output in float32" in failure for failure in certificate.failures)


@pytest.mark.parametrize(("what", "form"), [("weight", "patch"), ("geometry", "weight")])
def test_it_says_no_where_the_input_is_zero(what: str, form: str):
    """The output hides it: all of it is the bias."""
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"))
    x = -torch.rand(1, 2, 6, 6)
    after = copy.deepcopy(model)
    if what == "weight":
        after[1].weight.data[0, 0, 0, 0] *= 1.001
    else:
        after[1].padding_mode = "zeros"
    layer = only(verify(model, convfc.to_fc(after, form=form), x))
    assert layer.own["output"].ratio == layer.float64["output"].ratio == 0
    assert layer.float64["input"].ratio > 1
    assert not layer.holds
    assert layer.exact.identical is False


class Wrong(torch.autograd.Function):
    """The identity, with another gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 1.001 * gradient


def test_it_says_no_to_a_gradient_alone():
    model = nn.Sequential(nn.Conv2d(2, 3, 3))
    fc = convfc.to_fc(model)
    fc[0].fc.register_forward_hook(lambda module, args, y: Wrong.apply(y))
    layer = only(verify(model, fc, torch.randn(1, 2, 6, 6)))
    assert layer.own["output"].holds
    assert [name for name, c in layer.own.items() if not c.holds] == ["input", "weight", "bias"]
    assert layer.exact.differing == ("input", "weight", "bias")


def test_it_says_no_without_a_converted_layer():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    certificate = verify(model, copy.deepcopy(model), torch.randn(2, 3))
    assert not certificate.holds
    assert certificate.failures[0].startswith("no converted layer was found")
    assert certificate.network.holds


def test_layers_that_one_network_does_not_have():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 1)))
    x = torch.randn(1, 3, 6, 6)
    fewer = nn.Sequential(convfc.to_fc(model[0]), nn.Sequential())
    for before, after in ((model, fewer), (fewer, model)):
        certificate = verify(before, after, x)
        assert certificate.missing == ("1.0",)
        assert not certificate.holds
        assert "1.0: expected this layer in both networks, got one" in certificate.failures


def test_layers_that_cannot_be_converted_are_listed_and_part_of_the_whole():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), OwnCall(4, 4, 3))
    after = copy.deepcopy(model)
    after[0] = convfc.to_fc(after[0])
    x = torch.randn(1, 3, 8, 8)
    certificate = verify(model, after, x)
    assert certificate.holds
    assert certificate.unconverted == ("1",)
    assert "1: cannot be converted, not compared" in str(certificate)
    after[1].weight.data[0, 0, 0, 0] *= 1.001
    assert any("network: 1.weight" in failure for failure in verify(model, after, x).failures)


def test_a_second_network_that_cannot_run_is_a_finding():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(1, 3, 6, 6)
    after = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())
    failures = verify(model, after, x).failures
    assert any(f.startswith("0: the second layer fails; expected an output") for f in failures)
    assert any(f.startswith("network: the second network fails") for f in failures)
    assert any(f.startswith("0: its weight; expected (4, 3, 3, 3)") for f in failures)


RETURNS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Any], str]] = {
    "fewer": (lambda y: (y, y), lambda y: (y,), r"output\[1\]; expected Tensor, got NoneType"),
    "more": (lambda y: (y,), lambda y: (y, y), r"output\[1\]; expected none, got one"),
    "value": (lambda y: (y, 1), lambda y: (y, 2), r"output\[1\]; expected 1, got 2"),
    "dtype": (lambda y: y, lambda y: y.double(), "output; expected .* got .* of float64"),
    "no tensor": (lambda y: 1, lambda y: 1, "expected tensors among the outputs, got none"),
    "unknown": (lambda y: {y}, lambda y: {y}, "output is a set, whose tensors are not seen"),
    "integers": (lambda y: y.argmax(), lambda y: y.argmin(), "output in float64; expected"),
}


@pytest.mark.parametrize(("ours", "theirs", "reason"), RETURNS.values(), ids=RETURNS)
def test_outputs_of_another_kind(
    ours: Callable[[Tensor], Any], theirs: Callable[[Tensor], Any], reason: str
):
    before, after = (
        net(lambda m, x, make=make: make(m.conv(x)), conv=nn.Conv2d(3, 4, 3))
        for make in (ours, theirs)
    )
    after.load_state_dict(before.state_dict())
    (failure,) = verify(before, after, torch.randn(1, 3, 6, 6)).failures
    assert re.match(f"network: .*{reason}", failure), failure


def test_other_strides_are_noted_and_no_failure():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    after = nn.Sequential(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last))
    after.load_state_dict(model.state_dict())
    certificate = verify(model, after, torch.randn(1, 3, 6, 6))
    assert certificate.holds
    assert any("strides" in note for note in certificate.notes)
    assert any("0: strides of its output: " in note for note in certificate.notes)


class LoRA(nn.Module):
    """What a PEFT tool puts in the place of a Linear."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(0.1 * torch.randn(2, base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + x @ self.a.T @ self.b.T
        return y


def test_a_tool_s_layer_is_compared_as_a_function():
    model, x = network(), torch.randn(1, 3, 8, 8)
    fc = convfc.to_fc(model)
    fc.strided.fc = LoRA(fc.strided.fc)
    fresh = verify(model, fc, x)
    assert fresh.holds
    layer = next(layer for layer in fresh.layers if layer.name == "strided")
    assert layer.own.keys() == {"output", "input"}
    assert layer.exact.identical is None
    assert layer.exact.why_not == "one side is more than a plain layer"
    fc.strided.fc.b.data.normal_()
    assert not verify(model, fc, x).holds
    weight = convfc.to_fc(model, form="weight")
    nn.utils.parametrize.register_parametrization(weight.strided, "weight", nn.Identity())
    certificate = verify(model, weight, x)
    assert certificate.holds
    assert [row.name for row in certificate.layers if row.exact.identical is None] == ["strided"]
    merged = copy.deepcopy(model)
    extra = fc.strided.to_weight(fc.strided.fc.b @ fc.strided.fc.a)
    merged.strided.weight.data += extra
    assert verify(fc, merged, x).holds
    merged.strided.weight.data[0] += 0.001 * extra[0]
    assert not verify(fc, merged, x).holds


def test_a_factored_layer_becomes_two_and_is_compared_as_a_whole():
    model, x = network(), torch.randn(1, 3, 8, 8)
    fc = convfc.to_fc(model)
    fc.strided.fc = nn.Sequential(nn.Linear(36, 2, bias=False), nn.Linear(2, 4))
    cnn = convfc.to_conv(fc)
    for before, after in ((fc, cnn), (cnn, fc)):
        certificate = verify(before, after, x)
        assert certificate.holds, str(certificate)
        layer = next(layer for layer in certificate.layers if layer.name == "strided")
        assert layer.own["output"].ratio is not None
        assert layer.weights == ()
    cnn.strided[1].weight.data[0, 0] *= 1.01
    assert not verify(fc, cnn, x).holds


def test_a_head_that_became_conv_layers():
    model = nn.Sequential(nn.Conv2d(3, 8, 5), nn.Flatten(), nn.Linear(128, 10), nn.Linear(10, 3))
    x = torch.randn(2, 3, 8, 8)
    cnn = convfc.to_fully_convolutional(model, x)
    certificate = verify(model, cnn, x)
    assert_proven(certificate)
    assert [layer.forms for layer in certificate.layers[1:]] == [("Linear", "native")] * 2
    assert certificate.layers[1].patch_matrix == (2, 1, 128)
    cnn[2].weight.data = cnn[2].weight.data.mT.contiguous()
    assert not verify(model, cnn, x).holds


class NoGradient(nn.Linear):
    """What a quantised layer is like."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise NotImplementedError("float32 only")
        return super().forward(x.detach()).detach()


def test_a_layer_without_gradient_or_float64_says_so():
    model = nn.Sequential(nn.Conv2d(2, 3, 3))
    fc = convfc.to_fc(model)
    fc[0].fc.__class__ = NoGradient
    certificate = verify(model, fc, torch.randn(1, 2, 6, 6))
    assert "0: gradient of the input; expected one, got none" in certificate.failures
    assert any("float32 only" in note for note in certificate.notes)


class Counting(nn.Linear):
    """A layer that is another function each time it is called."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


def test_what_a_tool_s_layer_keeps_of_one_run_is_not_seen_by_the_next():
    model = nn.Sequential(nn.Conv2d(2, 3, 3))
    fc = convfc.to_fc(model)
    fc[0].fc.__class__ = Counting
    assert verify(model, fc, torch.randn(1, 2, 6, 6)).holds
