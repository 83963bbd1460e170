"""Layers held to norm 1 by the norm of the map that they are."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from conv_cases import CASES, ConvCase
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import convfc
from convfc.errors import UnsupportedLayer
from convfc.methods.spectrum import singular_values, spectral_norm

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
SOME = [case for case in CASES if max(case.layer().stride) > 1 or case.rest][::2]


def largest(layer: nn.Module, size: tuple[int, ...]) -> float:
    """The norm by LAPACK, of the matrix of the layer."""
    matrix = convfc.conv_matrix(layer.eval(), size, layout="dense")
    return float(
        np.linalg.norm(np.asarray(matrix.detach() if torch.is_tensor(matrix) else matrix), 2)
    )


@pytest.mark.parametrize("case", SOME, ids=str)
def test_the_layer_has_norm_1_whatever_its_settings(case: ConvCase) -> None:
    layer = case.layer()
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight))
    assert spectral_norm(layer, case.size, steps=1000) is layer
    assert largest(layer, case.size) == pytest.approx(1, abs=1e-3)
    assert not list(layer.parametrizations.weight.named_parameters())[1:]


def test_pytorchs_own_is_that_of_the_reshaped_kernel() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, dtype=torch.float64)
    theirs = parametrizations.spectral_norm(copy.deepcopy(conv), n_power_iterations=100)
    ours = spectral_norm(copy.deepcopy(conv), (8, 8), steps=100)
    assert largest(theirs, (8, 8)) > 1.3
    assert largest(ours, (8, 8)) == pytest.approx(1, abs=1e-2)


def test_the_gradient_is_that_of_the_weight_by_its_norm() -> None:
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode="reflect", dtype=torch.float64)
    weight = conv.weight.detach().clone()
    layer = spectral_norm(conv, (7, 6), steps=2000).eval()
    toward = torch.randn_like(weight)
    (layer.weight * toward).sum().backward()
    found = layer.parametrizations.weight.original.grad
    for index in [(0, 0, 0, 0), (1, 1, 2, 1), (2, 0, 1, 2)]:
        values = []
        for step in (1e-5, -1e-5):
            moved = weight.clone()
            moved[index] += step
            native = nn.Conv2d(2, 3, 3, 2, 1, padding_mode="reflect", dtype=torch.float64)
            native.weight = nn.Parameter(moved)
            values.append(float((moved / largest(native, (7, 6)) * toward).sum()))
        assert found[index].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_it_goes_on_where_it_ended_and_only_in_training_mode() -> None:
    layer = spectral_norm(nn.Conv2d(4, 8, 3, padding=1), (8, 8))
    before = layer.parametrizations.weight[0].direction.clone()
    x = torch.randn(2, 4, 8, 8)
    layer.eval()(x)
    assert torch.equal(layer.parametrizations.weight[0].direction, before)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    layer.train()
    for _ in range(60):
        optimizer.zero_grad()
        (-layer(x).square().mean()).backward()
        optimizer.step()
    assert not torch.equal(layer.parametrizations.weight[0].direction, before)
    assert largest(layer, (8, 8)) == pytest.approx(1, abs=0.2)  # one step behind a moving weight
    with torch.no_grad():
        for _ in range(300):
            layer.train()(x)
    assert largest(layer, (8, 8)) == pytest.approx(1, abs=1e-2)
    again = pickle.loads(pickle.dumps(layer.state_dict()))  # noqa: S301 (our own)
    other = spectral_norm(nn.Conv2d(4, 8, 3, padding=1), (8, 8))
    other.load_state_dict(again)
    assert torch.equal(other.eval()(x), layer(x))


def test_it_stays_in_the_patch_form_and_can_be_made_permanent() -> None:
    model = nn.Sequential(spectral_norm(nn.Conv2d(3, 4, 3, stride=2), (9, 9)), nn.ReLU())
    x = torch.randn(2, 3, 9, 9)
    assert convfc.verify(model, convfc.to_fc(model), x).holds
    weight = model.eval()[0].weight.detach()
    parametrize.remove_parametrizations(model[0], "weight")
    assert torch.equal(model[0].weight, weight)


@pytest.mark.parametrize(
    "layer", [nn.Linear(3, 2), convfc.to_fc(nn.Conv2d(1, 1, 3))], ids=["Linear", "fc"]
)
def test_what_is_no_conv_layer_is_refused(layer: nn.Module) -> None:
    with pytest.raises(UnsupportedLayer, match=r"^layer: .* expected a CONV layer of torch.nn"):
        spectral_norm(layer, (6, 6))


def test_singular_values_are_numbers_for_numpy() -> None:
    conv = nn.Conv2d(2, 3, 3)
    found = singular_values(conv, (6, 6))
    assert float(singular_values(conv, (6, 6), k=1)) == found.values[0] == np.max(found)
    assert len(found) == np.asarray(found).size
    with pytest.raises(ValueError, match="size 1"):
        float(found)
