"""Low rank: the closest that there is, by way of the FC form, and what it saves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conv_cases import CASES, ConvCase
from hypothesis import given, settings
from hypothesis import strategies as st
from morphism_layers import LayerCase, assert_unchanged, filled, layers, numbers, state_of
from morphism_layers import train_a_step as trains
from torch import nn

from convfc.frameworks.torch.read import weight_to_matrix
from convfc.methods.morphism import Factored, factor
from convfc.rounding import UNIT_ROUNDOFF, rounding_bound

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]


def of_layer(layer: nn.Module, **options: Any) -> Factored:
    """A layer alone, factored on random numbers."""
    channels = layer.weight.shape[1] * getattr(layer, "groups", 1)
    shape = (2, channels, *[5] * (layer.weight.dim() - 2))
    return factor(layer, "", example=numbers(shape, 1).to(layer.weight.dtype), **options)


def matrices(layer: nn.Module) -> list[np.ndarray]:
    """The FC weights (f, k) of every group."""
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.Linear):
        return [weight.numpy()]
    matrix = weight_to_matrix(weight, transposed=layer.transposed, groups=layer.groups)
    return [part.numpy() for part in matrix.chunk(layer.groups)]


def product_of(pair: nn.Module) -> list[np.ndarray]:
    """The FC weights of two layers, one behind the other, of every group."""
    first, second = pair
    return [b @ a for a, b in zip(matrices(first), matrices(second), strict=True)]


@given(case=layers(dtype=torch.float64))
@settings(max_examples=25)
def test_full_rank_holds(case: LayerCase) -> None:
    layer, x = case
    state = state_of(layer)
    rank = min(matrices(layer)[0].shape)
    factored = factor(layer, "", rank=rank, example=x)
    assert factored.certificate.holds, str(factored)
    assert factored.rank == rank
    assert factored.error == 0.0
    assert factored.energy == 1.0
    assert_unchanged(layer, state)
    first, second = factored.model
    assert type(first) is type(layer)
    assert first.bias is None
    assert (second.bias is None) == (layer.bias is None)


@pytest.mark.parametrize("case", CASES[::2], ids=str)
def test_no_matrix_of_this_rank_is_closer(case: ConvCase) -> None:
    layer = filled(case.layer())
    old = matrices(layer)
    for rank in range(1, min(old[0].shape)):
        factored = factor(layer, "", rank=rank, example=case.x())
        assert not factored.certificate.holds
        new = product_of(factored.model)
        lost = whole = 0.0
        for before, after in zip(old, new, strict=True):
            values = np.linalg.svd(before, compute_uv=False)
            lost += (values[rank:] ** 2).sum()
            whole += (values**2).sum()
            # Backward stability of the SVD, norm by norm.
            room = 10 * max(before.shape) * UNIT_ROUNDOFF["float64"] * values[0]
            assert np.linalg.norm(before - after) <= np.linalg.norm(values[rank:]) + room
            assert np.linalg.matrix_rank(after) == rank
        assert f"{factored.error:.9g}" == f"{np.sqrt(lost / whole):.9g}"
        assert f"{factored.energy:.9g}" == f"{1 - lost / whole:.9g}"


@given(seed=st.integers(0, 999), size=st.sampled_from([(2, 3), (3, 2), (4, 2), (2, 4)]))
@settings(max_examples=25)
def test_at_full_rank_every_number_is_as_exact_as_its_size_asks_for(seed: int, size: Any) -> None:
    layer = filled(nn.Linear(*size, bias=False, dtype=torch.float64), seed)
    first, second = (part.weight.detach() for part in of_layer(layer, rank=min(size)).model)
    room = rounding_bound(second.abs() @ first.abs(), min(size), "float64")
    assert bool(((second @ first - layer.weight).abs() <= room).all())


def test_energy_counts_known_singular_values() -> None:
    linear = nn.Linear(4, 4, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.diag(torch.tensor([4.0, 2.0, 2.0, 1.0])))  # squares 16 4 4 1
    assert [of_layer(linear, energy=e / 25).rank for e in (0, 1, 16, 17, 20, 21, 24, 25)] == [
        *(1, 1, 1, 2, 2, 3, 3, 4)
    ]
    three = of_layer(linear, rank=3)
    assert three.error == (1 / 25) ** 0.5
    assert three.energy == 24 / 25


def test_groups_of_unequal_rank_take_the_larger() -> None:
    layer = nn.Conv1d(4, 6, 2, groups=2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight[:3] = numbers((3, 1), 1)[..., None] * numbers((2, 2), 2)
        layer.weight[3:] = torch.eye(3, 4, dtype=torch.float64).reshape(3, 2, 2)
    assert of_layer(layer, energy=0.9).rank == 3
    assert of_layer(layer, rank=1).model[0].out_channels == 2


def test_training_moves_every_parameter_of_the_two() -> None:
    model = filled(nn.Conv2d(1, 4, 3))
    x = numbers((2, 1, 6, 6), 1).float()
    assert all(trains(factor(model, "", rank=2, example=x).model, x).values())
