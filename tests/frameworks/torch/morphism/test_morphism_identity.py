"""What starts as the identity: a layer more, wherever the activation stands, and activations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morphism_layers import LayerCase, assert_unchanged, filled, layers, numbers, state_of
from morphism_layers import train_a_step as trains
from morphism_models import trained
from torch import Tensor, fx, nn
from torch.nn import functional

from convfc.errors import ArgumentError, UnsupportedLayer
from convfc.frameworks.torch.morphism.magnitude import Sums, magnitude
from convfc.methods.morphism import (
    IdentityStart,
    ParallelSum,
    deepen,
    morph_activation,
    morph_depth,
)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]
KINDS = [nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh]
ACTIVATIONS = [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-2.0, 3.0), nn.Sigmoid(), nn.Identity()]


@given(
    case=layers(dtype=torch.float64),
    activation=st.sampled_from(ACTIVATIONS),
    half=st.integers(0, 2),
)
def test_the_identity_changes_nothing_on_integers(
    case: LayerCase, activation: nn.Module, half: int
) -> None:
    layer = filled(case.layer, 3, whole=True)
    x = numbers(case.x.shape, 4, whole=True)
    model, state = nn.Sequential(layer, activation), state_of(layer)
    options: dict[str, Any] = {}
    if not isinstance(layer, nn.Linear):
        options = {"kernel_size": 2 * half + 1}
    morph = deepen(model, "0", example=x, **options)
    assert torch.equal(morph.model(x), model(x))
    assert morph.certificate.holds, str(morph)
    assert all(one.exact.identical for one in morph.certificate.layers)
    assert_unchanged(layer, state)
    start, new = morph.model[0][1], morph.model[0][2]
    idempotent = type(activation) in (nn.ReLU, nn.ReLU6, nn.Hardtanh)
    assert type(start) is (type(activation) if idempotent else nn.PReLU)
    assert repr(start) == repr(activation) or not idempotent
    assert int((new.weight != 0).sum()) == int(new.weight.sum()) == new.weight.shape[0]


class Block(nn.Module):
    """Activations as functions, as methods, in place and behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.function = nn.Conv2d(2, 2, 3, padding=1)
        self.method = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.branch = nn.Conv2d(2, 2, 1)
        self.clipped = nn.Conv2d(2, 2, 1)
        self.smooth = nn.Conv2d(2, 2, 1)
        self.twice = nn.Conv2d(2, 2, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.function(x), inplace=True)
        x = self.norm(self.method(x)).relu()
        y = self.branch(x)
        x = functional.relu(y) + self.relu(x + y) + y
        x = functional.hardtanh(self.clipped(x), -1.5, 2.5)
        x = functional.silu(self.smooth(x))
        x = self.relu(self.twice(x))
        x = functional.gelu(self.twice(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "start", "inside"),
    [
        ("function", "ReLU()", "function"),
        ("method", "ReLU()", "norm"),
        ("branch", "PReLU(num_parameters=1)", "branch"),
        ("clipped", "Hardtanh(min_val=-1.5, max_val=2.5)", "clipped"),
        ("smooth", "PReLU(num_parameters=1)", "smooth"),
        ("twice", "PReLU(num_parameters=1)", "twice"),
        ("head", "PReLU(num_parameters=1)", "head"),
    ],
)
def test_however_the_model_writes_its_activation(name: str, start: str, inside: str) -> None:
    model, x = trained(Block()), numbers((2, 2, 6, 6), 1).float()
    state = state_of(model)
    morph = deepen(model, name, example=x)
    assert morph.certificate.holds, str(morph)
    put = morph.model.get_submodule(inside)
    assert type(put) is nn.Sequential
    assert repr(put[1]) == start
    assert type(morph.model) is Block
    assert_unchanged(model, state)


def test_of_a_model_without_a_graph_no_activation_is_known() -> None:
    class Untraceable(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    model = trained(Untraceable(nn.Conv1d(1, 2, 3), nn.ReLU()))
    morph = deepen(model, "0", example=numbers((1, 1, 9), 1).float())
    assert type(morph.model[0][1]) is nn.PReLU
    assert morph.certificate.holds


def test_training_moves_every_parameter_of_a_stack_of_morphs() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    x = numbers((4, 1, 4, 4), 1).float()
    want = model(x)
    for name in ("0", "0.0", "3"):
        morph = deepen(model, name, example=x)
        assert morph.certificate.holds
        model = morph.model
    assert torch.equal(model(x), want)
    model = morph_depth(model, "0.2", example=x).model
    changed = trains(model, x)
    assert all(changed.values()), changed


def test_another_activation_may_stand_there_if_it_starts_as_the_identity() -> None:
    model, x = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU()), numbers((1, 1, 9), 1).float()
    morph = deepen(model, "0", example=x, activation=nn.GELU())
    assert type(morph.model[0][1]) is IdentityStart
    assert morph.certificate.holds


# Activations


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


def test_a_bound_goes_through_the_identity_only() -> None:
    sums = Sums(torch.tensor([2.0], dtype=torch.float64), 5)
    assert magnitude(IdentityStart(nn.Tanh()), sums) == sums
    assert magnitude(IdentityStart(nn.Tanh(), 0.5), sums) is None


def test_what_starts_as_the_identity_is_taken_as_it_is() -> None:
    layer, x = nn.Conv1d(2, 3, 3), numbers((2, 2, 9), 1).float()
    for given_one in (nn.PReLU(3, init=1.0), IdentityStart(nn.Softplus()), nn.Identity()):
        morph = morph_activation(layer, "", example=x, activation=given_one)
        assert type(morph.model[1]) is type(given_one)
        assert morph.certificate.holds
        ours = {id(p) for p in given_one.parameters()}
        assert not ours & {id(p) for p in morph.model.parameters()}


def test_a_graph_goes_through_it_and_through_a_sum() -> None:
    model = nn.Sequential(ParallelSum([nn.Linear(2, 2), IdentityStart(nn.Tanh(), 0.5)]), nn.ReLU())
    graph, x = fx.symbolic_trace(model), numbers((3, 2), 1).float()
    assert torch.equal(graph(x), model(x))


@pytest.mark.parametrize(
    "activation",
    [nn.PReLU(init=0.5), nn.Softmax(dim=1), IdentityStart(nn.Tanh(), 0.5)],
    ids=repr,
)
def test_what_is_no_activation_is_refused(activation: Any) -> None:
    name = type(activation).__name__
    with pytest.raises(ArgumentError, match=f"activation: {name} is not the identity at its start"):
        morph_activation(nn.Conv1d(1, 1, 1), "", example=torch.ones(1, 1, 4), activation=activation)
    with pytest.raises(UnsupportedLayer, match=f"0: {name}: it is not a CONV or FC layer"):
        morph_activation(nn.Sequential(activation), "0", example=torch.ones(1, 1, 4))
