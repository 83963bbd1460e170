"""Simplified networks through the public verbs: to_fc, verify with its yes and no, to_conv."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import convfc
from convfc.errors import ArgumentError, NotAConvolution, ShapeError, UnsupportedLayer

pytestmark = pytest.mark.usefixtures("one_thread")


class Branched(nn.Module):
    """A residual block with BatchNorm, pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.short = nn.Conv2d(3, 4, 1)
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Linear(4, 5)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.first(x)))
        y = self.pool(torch.relu(self.second(y) + self.short(x)))
        return self.last(y.mean((2, 3)))


def plain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def simplify(model: nn.Module, x: Tensor, **options: object) -> nn.Module:
    return convfc.simplify(model, x, **options)


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 6, 6)


OPTIONS = {
    "add": {},
    "relu": {"max_pool": "relu"},
    "carry": {"branches": "carry"},
    "carry-relu": {"branches": "carry", "max_pool": "relu"},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_is_proven_stage_by_stage_and_goes_back(
    options: dict[str, object], dtype: torch.dtype, x: Tensor
) -> None:
    model, x = Branched().eval().to(dtype), x.to(dtype)
    after = simplify(model, x, **options)
    assert not [part for part in after.modules() if isinstance(part, nn.Conv2d)]
    there, backwards = convfc.verify(model, after, x), convfc.verify(after, model, x)
    for certificate in (there, backwards):
        assert certificate.holds, str(certificate)
        assert not certificate.missing
        assert len(certificate.layers) >= 3
        for layer in certificate.layers:
            assert layer.own["output"].ratio is not None
            assert layer.float64["output"].ratio is not None
        (output,) = certificate.network.outputs
        assert output.float64 is not None
        assert output.rounding is not None
        assert "products of layers" in str(certificate.notes)
    assert "compared in the other direction" in backwards.notes
    json.dumps(there.to_dict(), allow_nan=False)
    back = convfc.to_conv(after)
    assert type(back) is Branched
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in back.state_dict().items())


def hooks_of(model: nn.Module) -> list[list[object]]:
    return [
        [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
        for part in model.modules()
    ]


def test_nothing_is_changed_by_the_comparison(x: Tensor) -> None:
    model = Branched().eval()
    after = simplify(model, x)
    states = [copy.deepcopy(m.state_dict()) for m in (model, after)]
    random, hooks = torch.get_rng_state(), [hooks_of(m) for m in (model, after)]
    assert convfc.verify(model, after, x).holds
    assert torch.equal(torch.get_rng_state(), random)
    for m, state in zip((model, after), states, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in m.state_dict().items())
    assert [hooks_of(m) for m in (model, after)] == hooks


def at(name: str, index: tuple[int, ...], away: float) -> Callable[[nn.Module, nn.Module], None]:
    def sabotage(before: nn.Module, after: nn.Module) -> None:
        with torch.no_grad():
            after.get_parameter(name)[index] += away

    return sabotage


def other_activation(before: nn.Module, after: nn.Module) -> None:
    after[2] = nn.ELU()


def other_network(before: nn.Module, after: nn.Module) -> None:
    with torch.no_grad():
        before[2].weight[0, 0, 0, 0] += 1e-3


def negative_zero(before: nn.Module, after: nn.Module) -> None:
    with torch.no_grad():
        after[1].weight[0, 107] = -0.0


SABOTAGE = {
    "a sign of a zero": (negative_zero, r"network: 1\.weight at"),
    "a weight": (at("1.weight", (5, 0), 1e-2), r"network: 1\.weight at \[5, 0\]; expected .*, got"),
    "a weight off the pattern": (
        at("1.weight", (0, 107), 1e-6),
        r"network: 1\.weight at \[0, 107\]; expected 0\.0, got",
    ),
    "a bias": (at("3.bias", (1,), 1e-2), r"network: 3\.bias at \[1\]; expected .*, got"),
    "an activation": (other_activation, "network: 2; expected ReLU, got ELU"),
    "the first network": (other_network, r"network: 3\.weight at \[0, 0\]; expected"),
}


@pytest.mark.parametrize(("sabotage", "reason"), SABOTAGE.values(), ids=SABOTAGE)
def test_it_says_no(sabotage, reason: str, x: Tensor) -> None:
    model = plain()
    after = simplify(model, x)
    assert convfc.verify(model, after, x).holds
    sabotage(model, after)
    certificate = convfc.verify(model, after, x)
    assert not certificate.holds

    assert any(re.match(reason, failure) for failure in certificate.failures), str(certificate)


def test_a_large_change_breaks_the_bound_of_its_stage(x: Tensor) -> None:
    model = plain()
    after = simplify(model, x)
    with torch.no_grad():
        after[3].weight[0, 0] += 0.1
    certificate = convfc.verify(model, after, x)
    wrong = [layer.name for layer in certificate.layers if not layer.holds]
    assert wrong == ["2"]  # the layer of the first network that the changed one computes


def test_more_than_one_input_is_a_finding(x: Tensor) -> None:
    class Scaled(nn.Sequential):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return super().forward(x) * scale

    model = Scaled(*plain())
    after = simplify(plain(), x)
    certificate = convfc.verify(model, after, (x, 2.0))
    assert any("expected one tensor" in failure for failure in certificate.failures)


def test_what_is_no_cnn_any_more_is_refused(x: Tensor) -> None:
    after = simplify(plain(), x)
    with torch.no_grad():
        after[1].weight[0, 107] = 1.0
    with pytest.raises(UnsupportedLayer, match="its matrix is no convolution's") as caught:
        convfc.to_conv(after)
    assert isinstance(caught.value.__cause__, NotAConvolution)


@pytest.mark.parametrize("options", [{"inplace": True}, {"where": "1"}], ids=str)
def test_it_goes_back_as_a_whole(options: dict[str, object], x: Tensor) -> None:
    (name,) = options
    with pytest.raises(ArgumentError, match=f"{name}: a simplified network goes back"):
        convfc.to_conv(simplify(plain(), x), **options)


class Constant(nn.Module):
    """A network that cannot run in float64: its forward makes a tensor in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 3)
        self.last = nn.Conv1d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.conv(x) @ torch.ones(8, 2)))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_network_without_float64_is_compared_in_its_own_dtype(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model, x = Constant().eval(), torch.randn(2, 1, 10)
    after = simplify(model, x, **options)
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
    with torch.no_grad():
        after[1].weight[0, 0] += 1e-6
    failures = convfc.verify(model, after, x).failures
    assert any(re.match(r"network: 1\.weight at \[0, 0\]; expected", f) for f in failures)


@pytest.mark.parametrize("kind", ["NaN", "an infinity"])
def test_an_input_that_is_no_number_is_told(kind: str, x: Tensor) -> None:
    after = simplify(plain(), x)
    x[0, 0, 0, 0] = torch.nan if kind == "NaN" else torch.inf
    certificate = convfc.verify(plain(), after, x)
    assert len(certificate.layers) == len(convfc.verify(plain(), after, x.nan_to_num()).layers)
    reason = f"its input, or a weight, holds {kind}, so there is no rounding bound to compare with"
    told = f"{certificate.layers[0].name}: {reason}; expected finite numbers: give finite ones of "
    assert certificate.failures[0] == told + "both"
    assert not any("got none" in failure for failure in certificate.failures)


def test_an_input_that_the_network_does_not_take_is_explained(x: Tensor) -> None:
    model = plain()
    after = simplify(model, x)
    message = r"x: the model does not run on this input: Given groups=1.* got \(2, 2, 6, 6\)\. Rem"
    with pytest.raises(ShapeError, match=message):
        convfc.verify(model, after, x[:, :2])
    message = r"example: the model does not run on two examples .*: Given groups=1.* 2 channels"
    with pytest.raises(ShapeError, match=message + r" instead; got \(2, 2, 6, 6\)\. Remedy"):
        simplify(model, x[:1, :2])
    assert torch.equal(simplify(model, x.numpy())(x), after(x))
