"""Simplified networks in verify, stage by stage, and back as CONV networks with to_conv."""

from __future__ import annotations

import copy
import importlib
import json
import operator
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import assert_same_state, net, trained
from simplified_models import NETWORKS, each_way, lenet, mobile, resnet
from torch import Tensor, fx, nn

import convfc
from convfc.errors import ArgumentError, ShapeError, UnsupportedLayer


def plain() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(4, 3)),
    )


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 6, 6)


# Back, while nothing has changed ------------------------------------------------------------------


@each_way
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_bit_for_bit(name: str, way: dict[str, Any]) -> None:
    make, shape = NETWORKS[name]
    model = trained(make())
    simple = convfc.simplify(model, torch.randn(1, *shape), **way)
    kept = copy.deepcopy(model)
    with torch.no_grad():
        next(model.parameters()).zero_()  # which the simplified network has no part in
    back = convfc.to_conv(simple)
    assert [type(part) for part in back.modules()] == [type(part) for part in kept.modules()]
    assert_same_state(back, kept)
    assert not back.training


def loaded(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(model.state_dict())
    return other


MOVED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "state loaded": loaded,
    "double": lambda model: copy.deepcopy(model).double(),
    "double and back": lambda model: copy.deepcopy(model).double().float(),
    "half": lambda model: copy.deepcopy(model).half(),
    "bfloat16": lambda model: copy.deepcopy(model).bfloat16(),
}


@each_way
def test_it_comes_back_from_every_copy_and_dtype(way: dict[str, Any]) -> None:
    model, x = trained(resnet()), torch.randn(2, 2, 8, 8)
    simple = convfc.simplify(model, x, **way)
    for name, move in MOVED.items():
        other = move(simple)
        dtype = next(other.parameters()).dtype
        assert other(x.to(dtype)).dtype == dtype
        back = convfc.to_conv(other)
        assert {parameter.dtype for parameter in back.parameters()} == {dtype}, name
        assert_same_state(back, copy.deepcopy(model).to(dtype))


def test_it_goes_back_as_a_whole(x: Tensor) -> None:
    with pytest.raises(ArgumentError, match="where: a simplified network goes back"):
        convfc.to_conv(convfc.simplify(plain(), x), where="1")


# No: to_conv refuses what is not as it was made, and verify says no to it -------------------------


def at(name: str, index: tuple[int, ...], away: float) -> Callable[[nn.Module], None]:
    def change(after: nn.Module) -> None:
        with torch.no_grad():
            after.get_parameter(name)[index] += away

    return change


def negative_zero(after: nn.Module) -> None:
    with torch.no_grad():
        after[1].weight[0, 107] = -0.0


def subtracting(after: nn.Module) -> None:
    assert isinstance(after, fx.GraphModule)
    for node in after.graph.nodes:
        if node.target is operator.add:
            node.target = operator.sub
    after.recompile()


def refused(after: nn.Module, words: str) -> None:
    place, _, found = words.partition("; ")
    message = (
        rf"^{place}: this is not as convfc\.simplify made it; {found}.*\. Remedy: let tools change "
        "the layers that convfc.to_fc makes, which go back with any numbers, and simplify after "
        "that$"
    )
    with pytest.raises(UnsupportedLayer, match=message):
        convfc.to_conv(after)


CHANGED: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "a weight": (at("1.weight", (5, 0), 1e-2), r"1\.weight at \[5, 0\]; expected -?0\.\d+, got "),
    "a weight off the pattern": (
        at("1.weight", (0, 107), 1e-6),
        r"1\.weight at \[0, 107\]; expected 0\.0, got ",
    ),
    "the sign of a zero": (negative_zero, r"1\.weight at \[0, 107\]; expected 0\.0, got -0\.0"),
    "a bias": (at("3.bias", (1,), 1e-2), r"3\.bias at \[1\]; expected -?0\.\d+, got "),
    "an activation": (lambda m: m.__setitem__(2, nn.ELU()), "2; expected ReLU, got ELU"),
    "a part": (lambda m: m.append(nn.ReLU()), "6; expected none, got ReLU"),
    "a part gone": (lambda m: m.__delitem__(5), "5; expected Linear, got none"),
    "a size": (
        lambda m: m.__setitem__(5, nn.Linear(4, 2)),
        r"5\.weight; expected \(3, 4\) .*, got \(2, 4\)",
    ),
    "no bias": (lambda m: setattr(m[3], "bias", None), r"3\.bias; expected \(4,\) .*, got none"),
}


@pytest.mark.parametrize(("change", "words"), CHANGED.values(), ids=CHANGED)
def test_what_is_not_as_it_was_made_is_refused_and_refuted(change, words: str, x: Tensor) -> None:
    model = plain()
    after = convfc.simplify(model, x)
    assert convfc.verify(model, after, x).holds
    change(after)
    refused(after, words)
    certificate = convfc.verify(model, after, x)
    assert not certificate.holds
    assert any(re.match(f"network: {words}", one) for one in certificate.failures) or (
        "parts are not those" in str(certificate.failures)
    ), str(certificate)


def test_another_forward_is_refused_and_refuted() -> None:
    model, x = trained(resnet()), torch.randn(1, 2, 8, 8)
    after = convfc.simplify(model, x)
    subtracting(after)
    words = "its forward; expected that of the same network made again, got another"
    refused(after, words)
    failures = convfc.verify(model, after, x).failures
    assert any(failure.startswith(f"network: {words}") for failure in failures)


def test_large_weights_are_compared_by_blocks_of_rows(
    monkeypatch: pytest.MonkeyPatch, x: Tensor
) -> None:
    module = importlib.import_module("convfc.frameworks.torch.simplification.unchanged")
    monkeypatch.setattr(module, "_BLOCK", 3 * 108)
    model = plain()
    after = convfc.simplify(model, x)
    assert convfc.verify(model, after, x).holds
    at("1.weight", (14, 2), 1e-2)(after)
    refused(after, r"1\.weight at \[14, 2\]; expected")


# Stage by stage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@each_way
def test_it_is_proven_stage_by_stage(way: dict[str, Any], name: str) -> None:
    make, shape = NETWORKS[name]
    dtype = torch.float64 if name == "lenet_max" else torch.float32
    model, x = trained(make()).to(dtype), torch.randn(3, *shape, dtype=dtype)
    after = convfc.simplify(model, x, **way)
    random = torch.get_rng_state()
    there, backwards = convfc.verify(model, after, x), convfc.verify(after, model, x)
    assert torch.equal(torch.get_rng_state(), random)
    for certificate in (there, backwards):
        assert certificate.holds, str(certificate)
        assert not certificate.missing
        assert len(certificate.layers) >= (3 if name in ("resnet", "lenet_max") else 1)
        for layer in certificate.layers:
            assert layer.own["output"].ratio is not None
            assert layer.float64["output"].ratio is not None
        (output,) = certificate.network.outputs
        assert output.float64 is not None
        assert output.rounding is not None
        assert "products of layers" in str(certificate.notes)
    assert "compared in the other direction" in backwards.notes
    json.dumps(there.to_dict(), allow_nan=False)


def test_a_large_change_breaks_the_bound_of_its_stage(x: Tensor) -> None:
    model = plain()
    after = convfc.simplify(model, x)
    at("3.weight", (0, 0), 0.1)(after)
    wrong = [layer.name for layer in convfc.verify(model, after, x).layers if not layer.holds]
    assert wrong == ["2"]  # the layer of the first network that the changed one computes


@each_way
def test_a_network_without_float64_is_compared_in_its_own_dtype(way: dict[str, Any]) -> None:
    """Its forward makes a tensor in float32."""
    parts = {"conv": nn.Conv1d(1, 2, 3), "last": nn.Conv1d(2, 2, 1)}
    model = net(lambda m, x: m.last(torch.relu(m.conv(x) @ torch.ones(8, 2))), **parts).eval()
    x = torch.randn(2, 1, 10)
    after = convfc.simplify(model, x, **way)
    certificate = convfc.verify(model, after, x)
    assert certificate.holds, str(certificate)
    assert len(certificate.layers) == 2
    for layer in certificate.layers:
        assert layer.own["output"].ratio <= 1
        assert layer.float64 == {}
    (output,) = certificate.network.outputs
    assert output.float64 is None
    first, note = certificate.notes
    assert first == (
        "in float64, the first network fails; expected an output, got RuntimeError: expected m1 "
        "and m2 to have the same dtype, but got: double != float"
    )
    assert "made again from the first network in its own dtype, since that one cannot run" in note
    at("1.weight", (0, 0), 1e-6)(after)
    failures = convfc.verify(model, after, x).failures
    assert any(re.match(r"network: 1\.weight at \[0, 0\]; expected", f) for f in failures)


@pytest.mark.parametrize("kind", ["NaN", "an infinity"])
def test_an_input_that_is_not_a_number_is_told(kind: str, x: Tensor) -> None:
    after = convfc.simplify(plain(), x)
    x[0, 0, 0, 0] = torch.nan if kind == "NaN" else torch.inf
    certificate = convfc.verify(plain(), after, x)
    assert len(certificate.layers) == 3
    reason = f"its input, or a weight, holds {kind}, so there is no rounding bound to compare with"
    told = f"{certificate.layers[0].name}: {reason}; expected finite numbers: give finite ones of "
    assert certificate.failures[0] == told + "both"
    assert not any("got none" in failure for failure in certificate.failures)


def test_inputs_that_the_networks_do_not_take(x: Tensor) -> None:
    class Scaled(nn.Sequential):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return super().forward(x) * scale

    model = plain()
    after = convfc.simplify(model, x)
    certificate = convfc.verify(Scaled(*model), after, (x, 2.0))
    assert any("expected one tensor" in failure for failure in certificate.failures)
    message = r"x: the model does not run on this input: Given groups=1.* got \(2, 2, 6, 6\)\. Rem"
    with pytest.raises(ShapeError, match=message):
        convfc.verify(model, after, x[:, :2])


def test_stages_know_the_network_that_they_belong_to() -> None:
    model, x = trained(mobile()), torch.randn(2, 2, 5, 5)
    simple = convfc.simplify(model, x)
    names = [stage.name for stage in convfc.verify(model, simple, x).layers]
    assert names == ["7", "8"]  # in front of a ReLU6 there is more than the value
    images = torch.randn(3, 1, 12, 12)
    other = convfc.simplify(trained(lenet()), images)

    class Counting(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x)
            return y if len(x) == 2 else 2 * y / 2

    counting = Counting(*trained(lenet())).eval()
    for before, after, words in (
        (trained(lenet(nn.MaxPool2d)), other, "functions, on the same shape of input"),
        (counting, convfc.simplify(counting, images), "functions"),
    ):
        message = f"made of another one; expected the same calls of PyTorch's {words}. Remedy"
        failures = convfc.verify(before, after, images).failures
        assert any(message in failure for failure in failures), failures
