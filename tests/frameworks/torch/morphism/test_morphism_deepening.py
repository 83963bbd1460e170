"""An identity layer more: exact behind every layer, wherever the activation stands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morphism_layers import LayerCase, assert_unchanged, filled, layers, numbers, state_of
from morphism_layers import train_a_step as trains
from morphism_models import trained
from torch import Tensor, nn
from torch.nn import functional

from convfc.errors import ArgumentError, ShapeError
from convfc.methods.morphism import IdentityStart, deepen, morph_depth

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]
ACTIVATIONS = [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-2.0, 3.0), nn.Sigmoid(), nn.Identity()]


@given(
    case=layers(dtype=torch.float64),
    activation=st.sampled_from(ACTIVATIONS),
    half=st.integers(0, 2),
    depthwise=st.booleans(),
)
def test_the_identity_changes_nothing_on_integers(
    case: LayerCase, activation: nn.Module, half: int, depthwise: bool
) -> None:
    layer = filled(case.layer, 3, whole=True)
    x = numbers(case.x.shape, 4, whole=True)
    model, state = nn.Sequential(layer, activation), state_of(layer)
    options: dict[str, Any] = {}
    if not isinstance(layer, nn.Linear):
        options = {"kernel_size": 2 * half + 1, "groups": layer.out_channels if depthwise else 1}
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


class Untraceable(nn.Module):
    """Asks what is in a tensor, which no graph can answer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Conv1d(2, 2, 3))
        shared = nn.Conv1d(2, 2, 1)
        self.first = nn.Sequential(shared, nn.ReLU())
        self.other = nn.Sequential(shared, nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.first(self.body(x if x.sum() > 0 else -x)))


def test_a_model_without_a_graph_is_looked_at_part_by_part() -> None:
    model, x = trained(Untraceable()), numbers((1, 1, 9), 1).float()
    for name, start in (("body.0", nn.ReLU), ("body.2", nn.PReLU), ("first.0", nn.PReLU)):
        morph = deepen(model, name, example=x)
        assert type(morph.model.get_submodule(name)[1]) is start
        assert morph.certificate.holds


@pytest.mark.parametrize("ndim", [0, 1, 2, 3])
def test_batch_norm_starts_as_the_identity(ndim: int) -> None:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layer = filled(kinds[ndim](2, 3, *([3] if ndim else [])))
    model = nn.Sequential(layer, nn.ReLU()).eval()
    x = numbers((3, 2, *[5] * ndim), 1).float()
    morph = deepen(model, "0", example=x, batch_norm=True)
    assert morph.certificate.holds, str(morph)
    _, _, new, norm = morph.model[0]
    active = model(x).double().transpose(0, 1).flatten(1)
    assert torch.equal(norm.running_mean, active.mean(1).float())
    assert torch.equal(norm.running_var, active.var(1, correction=0).float())
    assert torch.equal(norm.bias, norm.running_mean)
    wanted = (norm.running_var.double() + norm.eps).sqrt().float()
    assert torch.equal(norm.weight, wanted)
    assert not any(part.training for part in morph.model.modules())
    assert new.weight.shape[0] == 3


def test_batch_norm_in_training_is_the_identity_on_the_example_only() -> None:
    layer, x = filled(nn.Conv1d(2, 3, 3)).double(), numbers((4, 2, 9), 1)
    morph = deepen(layer, "", example=x, batch_norm=True)
    bound = morph.certificate.layers[0].own["output"].bound
    other = x.flip(0) * 3
    trained_output = morph.model.train()(other)
    assert float((trained_output - layer(other)).abs().max().detach()) > bound


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
    with pytest.raises(ArgumentError, match="activation: Softmax does not start as the ident"):
        deepen(model, "0", example=x, activation=nn.Softmax(dim=1))


def test_modes_requires_grad_dtype_and_hooks_stay() -> None:
    model, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU()).to(torch.bfloat16).eval(), torch.ones(1, 2)
    model[0].weight.requires_grad_(False)
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    morph = deepen(model, "0", example=x.bfloat16())
    assert morph.certificate.holds, str(morph)
    new = morph.model[0][2]
    assert (new.weight.dtype, new.weight.requires_grad) == (torch.bfloat16, False)
    seen.clear()
    morph.model(x.bfloat16())
    assert len(seen) == 1
    assert torch.equal(seen[0], model[0](x.bfloat16()))


def test_the_global_generator_stays() -> None:
    state = torch.get_rng_state()
    deepen(nn.Conv1d(1, 2, 1), "", example=torch.ones(1, 1, 3), batch_norm=True)
    before = torch.get_rng_state()
    layer = nn.Conv1d(1, 2, 1)
    after = torch.get_rng_state()
    assert not torch.equal(state, before)  # making a layer draws
    deepen(layer, "", example=torch.ones(1, 1, 3), batch_norm=True)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"kernel_size": 4}, ArgumentError, r"an even kernel has no middle; .* got \(4, 4\)"),
        ({"groups": 3}, ArgumentError, "groups: the channels cannot be shared .* a divisor of 4"),
        ({"groups": 0}, ArgumentError, "groups: a size is too small"),
        ({"batch_norm": 1}, ArgumentError, "batch_norm: this is a yes or a no"),
    ],
    ids=str,
)
def test_what_is_no_identity_layer_is_refused(options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        deepen(nn.Conv2d(1, 4, 3), "", example=torch.ones(1, 1, 5, 5), **options)


def test_batch_norm_needs_a_batch_and_an_fc_layer_has_no_groups() -> None:
    with pytest.raises(ShapeError, match=r"BatchNorm needs a batch .* expected 4 axes; got \(4, 3"):
        deepen(nn.Conv2d(1, 4, 3), "", example=torch.ones(1, 5, 5), batch_norm=True)
    with pytest.raises(ArgumentError, match=r"groups: .* expected 1 for an FC layer; got 2"):
        deepen(nn.Linear(2, 4), "", example=torch.ones(1, 2), groups=2)
    with pytest.raises(ArgumentError, match="kernel_size: an FC layer has no kernel"):
        deepen(nn.Linear(2, 4), "", example=torch.ones(1, 2), kernel_size=3)
