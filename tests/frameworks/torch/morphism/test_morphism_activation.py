"""Activations that start as the identity, and activations that learn how strong they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morphism_layers import LayerCase, assert_unchanged, filled, layers, numbers, state_of
from morphism_layers import train_a_step as trains
from torch import fx, nn

from convfc.errors import ArgumentError, UnsupportedLayer
from convfc.frameworks.torch.morphism.magnitude import Sums, magnitude
from convfc.methods.morphism import IdentityStart, morph_activation
from convfc.rounding import rounding_bound

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]
KINDS = [nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Mish, nn.SELU, nn.SiLU, nn.Sigmoid]
KINDS += [nn.Softsign, nn.Tanh]


@given(case=layers(), kind=st.sampled_from([nn.ReLU, *KINDS]))
def test_behind_every_layer_it_starts_as_the_identity(case: LayerCase, kind: Any) -> None:
    layer, x = case
    state = state_of(layer)
    morph = morph_activation(layer, "", example=x, activation=kind())
    assert torch.equal(morph.model(x), layer(x))
    assert morph.certificate.holds, str(morph)
    assert morph.certificate.layers[0].exact.identical
    assert_unchanged(layer, state)
    assert type(morph.model[1]) is (nn.PReLU if kind is nn.ReLU else IdentityStart)
    assert next(morph.model[1].parameters()).dtype == layer.weight.dtype


@pytest.mark.parametrize("kind", [nn.ReLU, *KINDS])
def test_an_activation_made_parametric_starts_as_itself(kind: Any) -> None:
    model = nn.Sequential(filled(nn.Conv1d(2, 3, 3)), kind()).eval()
    x = numbers((2, 2, 9), 1).float()
    morph = morph_activation(model, "1", example=x)
    assert torch.equal(morph.model(x), model(x))
    assert morph.certificate.holds, str(morph)
    assert not any(part.training for part in morph.model.modules())
    changed = trains(morph.model, x)
    assert changed["1.weight" if kind is nn.ReLU else "1.a"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_its_strength_is_that_of_the_definition(kind: Any) -> None:
    start = IdentityStart(kind(), 0.25, dtype=torch.float64)
    x = numbers((7,), 1).requires_grad_()
    assert torch.autograd.gradcheck(start, (x,))
    (slope,) = torch.autograd.grad(start(x).sum(), start.a)
    phi = kind()(x.detach())
    sums = float((x.detach().abs() + phi.abs()).sum())
    missing = float((slope - (phi - x.detach()).sum()).abs())
    assert missing <= rounding_bound(sums, 2 * len(x), "float64")


@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 999), large=st.sampled_from([1.0, 10.0]))
def test_no_slope_is_steeper_than_it_is_said_to_be(kind: Any, seed: int, large: float) -> None:
    x, y = numbers((2, 500), seed) * large
    phi = kind()
    steepest = float(magnitude(phi, Sums(torch.ones(1))).values - phi(torch.zeros(1)).abs())
    assert bool(((phi(x) - phi(y)).abs() <= max(steepest, 1.0) * (x - y).abs()).all())
    bound = magnitude(phi, Sums(x.abs())).values
    assert bool((phi(x).abs() <= bound).all())


def test_the_bound_of_a_mixture_covers_both_ends() -> None:
    sums = Sums(torch.tensor([2.0], dtype=torch.float64), 5)
    assert magnitude(IdentityStart(nn.Tanh()), sums) == sums
    half = magnitude(IdentityStart(nn.Tanh(), 0.5), sums)
    assert half.values.item() == 6.0
    assert half.terms > magnitude(nn.Tanh(), sums).terms > 5
    assert magnitude(IdentityStart(nn.Softmax(dim=0), 0.5), sums) is None


def test_what_starts_as_the_identity_is_taken_as_it_is() -> None:
    layer, x = nn.Conv1d(2, 3, 3), numbers((2, 2, 9), 1).float()
    for given_one in (nn.PReLU(3, init=1.0), IdentityStart(nn.Softplus()), nn.Identity()):
        morph = morph_activation(layer, "", example=x, activation=given_one)
        assert type(morph.model[1]) is type(given_one)
        assert morph.certificate.holds
        ours = {id(p) for p in given_one.parameters()}
        assert not ours & {id(p) for p in morph.model.parameters()}


def test_a_graph_goes_through_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2), IdentityStart(nn.Tanh(), 0.5))
    graph, x = fx.symbolic_trace(model), numbers((3, 2), 1).float()
    assert torch.equal(graph(x), model(x))


@pytest.mark.parametrize(
    ("name", "activation", "text"),
    [
        ("1", None, "1: MaxPool1d is neither a layer .* nor an activation that can learn"),
        ("2", nn.GELU(), "2: an activation is made parametric, not exchanged .* got GELU"),
        ("0", nn.PReLU(init=0.5), "activation: PReLU does not start as the identity"),
        ("0", nn.Softmax(dim=1), "activation: Softmax does not start as the identity"),
        ("0", IdentityStart(nn.Tanh(), 0.5), "activation: IdentityStart does not start as the"),
    ],
    ids=str,
)
def test_what_is_no_activation_is_refused(name: str, activation: Any, text: str) -> None:
    model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.MaxPool1d(2), nn.ReLU())
    error = UnsupportedLayer if activation is None else ArgumentError
    with pytest.raises(error, match=text):
        morph_activation(model, name, example=torch.ones(1, 1, 4), activation=activation)
