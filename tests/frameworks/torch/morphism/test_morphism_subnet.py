"""Sub-networks for one layer: chains, and branches whose sum is the layer."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morphism_layers import LayerCase, assert_unchanged, filled, layers, numbers, state_of
from morphism_layers import train_a_step as trains
from torch import fx, nn

from convfc.errors import ArgumentError
from convfc.frameworks.torch.morphism.magnitude import Sums, magnitude
from convfc.methods.morphism import ParallelSum, morph_subnet

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]
CHAINS: list[list[tuple[int, int | None]]] = [
    [(3, None)],
    [(1, 4), (3, None)],
    [(3, 4), (1, 6), (1, None)],
]


@given(
    case=layers(dtype=torch.float64),
    reaches=st.lists(st.tuples(*[st.integers(-1, 2)] * 3), min_size=0, max_size=3),
)
def test_branches_add_up_to_the_layer_on_integers(case: LayerCase, reaches: Any) -> None:
    layer = filled(case.layer, 3, whole=True)
    x = numbers(case.x.shape, 4, whole=True)
    with torch.no_grad():
        layer.weight.mul_(64)  # shares are multiples of 1/64
    state = state_of(layer)
    kernel = getattr(layer, "kernel_size", ())
    branches: Any = [[(kernel, None)]]
    for more in reaches:
        size = tuple(max(1, k + n) for k, n in zip(kernel, more, strict=False))
        branches.append([(size, None)])
    branches = branches[1:] + branches[:1]  # the one that reaches everything comes last
    try:
        morph = morph_subnet(layer, "", example=x, branches=branches)
    except ArgumentError as error:
        assert "cannot pad an axis by as much" in str(error)  # noqa: PT017
        return
    assert torch.equal(morph.model(x), layer(x))
    assert morph.certificate.holds, str(morph)
    assert all(one.exact.identical for one in morph.certificate.layers)
    assert len(morph.model) == len(branches)
    assert_unchanged(layer, state)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding_mode": "circular"}], ids=str)
@pytest.mark.parametrize("cls", [nn.Conv2d, nn.ConvTranspose2d], ids=lambda cls: cls.__name__)
def test_every_branch_is_a_chain(cls: Any, options: Any) -> None:
    if cls is nn.ConvTranspose2d and "padding_mode" in options:
        options = {"output_padding": 1, "stride": 2, "groups": 2}
    layer = filled(cls(4, 4, 3, padding=1, **options))
    x = numbers((2, 4, 7, 7), 1).float()
    morph = morph_subnet(nn.Sequential(layer), "0", example=x, branches=CHAINS)
    assert morph.certificate.holds, str(morph)
    whole = morph.model[0]
    assert type(whole) is ParallelSum
    found = [
        [tuple(m.weight.shape[2:]) for m in branch.modules() if isinstance(m, cls)]
        for branch in whole
    ]
    assert found == [[(kernel, kernel) for kernel, _ in chain] for chain in CHAINS]
    biased = [name for name, p in whole.named_parameters() if "bias" in name and p.any()]
    assert biased == ["0.bias"]
    assert all(trains(morph.model, x).values())


def test_a_chain_of_three_and_a_chain_of_fc_layers() -> None:
    layer, x = filled(nn.Conv2d(2, 6, 3, padding=1)), numbers((2, 2, 7, 7), 1).float()
    morph = morph_subnet(layer, "", example=x, layers=[(3, 18), (1, 6), (3, None)])
    kinds = [type(part) for part in morph.model]
    assert kinds == [nn.Conv2d, nn.PReLU, nn.Conv2d, nn.PReLU, nn.Conv2d]
    assert [part.out_channels for part in morph.model[::2]] == [18, 6, 6]
    assert morph.certificate.holds, str(morph)
    assert all(trains(morph.model, x).values())
    linear = filled(nn.Linear(3, 4))
    morph = morph_subnet(
        linear, "", example=x[:1, 0, :3, 0], layers=[(1, 5), ((), 4), (1, None)], activation=None
    )
    assert [type(part) for part in morph.model] == [nn.Linear] * 3
    assert morph.certificate.holds


def test_branches_of_an_fc_layer() -> None:
    layer, x = filled(nn.Linear(3, 4)), numbers((2, 3), 1).float()
    morph = morph_subnet(layer, "", example=x, branches=[[(1, None)], [(1, 3), (1, None)]])
    assert morph.certificate.holds
    assert [type(part) for part in morph.model] == [nn.Linear, nn.Sequential]


def test_every_weight_is_shared_out_among_all_that_reach_it() -> None:
    layer, x = nn.Conv2d(2, 2, 3, padding=1), numbers((1, 2, 6, 6), 1).float()
    nn.init.constant_(layer.weight, 64.0)
    morph = morph_subnet(
        layer, "", example=x, branches=[[(3, None)], [(1, None)], [((3, 1), None)]]
    )
    full, point, column = (branch.weight for branch in morph.model)
    for share in (full, point, column):
        assert bool((share > 0).all())
        assert torch.equal(share, share.round())
    whole = full.clone()
    whole[:, :, 1:2, 1:2] += point
    whole[:, :, :, 1:2] += column
    assert torch.equal(whole, layer.weight)
    assert len({tuple(part.padding) for part in morph.model}) == 3


def test_what_reaches_less_crops_the_input() -> None:
    layer, x = filled(nn.Conv1d(2, 3, 3)), numbers((1, 2, 8), 1).float()
    morph = morph_subnet(layer, "", example=x, branches=[[(1, None)], [(3, None)]])
    crop, _ = morph.model[0]
    assert (type(crop), crop.padding) == (nn.ZeroPad1d, (-1, -1))
    assert morph.certificate.holds


def test_a_graph_goes_through_the_sum() -> None:
    model = nn.Sequential(ParallelSum([nn.Linear(2, 2), nn.Tanh()]), nn.ReLU())
    graph, x = fx.symbolic_trace(model), numbers((3, 2), 1).float()
    assert torch.equal(graph(x), model(x))
    assert [node.op for node in graph.graph.nodes].count("call_module") == 3


def test_seeds_decide_and_the_global_generator_stays() -> None:
    layer, x = filled(nn.Conv1d(2, 3, 3)), numbers((1, 2, 8), 1).float()
    state = torch.get_rng_state()
    made = [
        morph_subnet(layer, "", example=x, branches=CHAINS, seed=seed).model for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    one, same, other = (dict(model.named_parameters()) for model in made)
    weights = [name for name, p in one.items() if p.dim() > 1]
    assert all(torch.equal(one[name], same[name]) for name in weights)
    assert not any(torch.equal(one[name], other[name]) for name in weights)


def test_chains_of_one_morph_do_not_repeat_each_other() -> None:
    layer, x = filled(nn.Conv1d(2, 4, 3)), numbers((1, 2, 8), 1).float()
    morph = morph_subnet(layer, "", example=x, branches=[[(3, 4), (1, None)]] * 3)
    for place in (0, 2):
        weights = [branch[place].weight for branch in morph.model]
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(weights, 2))


def test_the_bound_of_a_sum_is_the_sum_of_the_bounds() -> None:
    branches = [filled(nn.Linear(3, 2)), nn.Sequential(filled(nn.Linear(3, 2), 5), nn.ReLU())]
    sums = Sums(torch.ones(1, 3, dtype=torch.float64))
    one, other = (magnitude(branch, sums) for branch in branches)
    both = magnitude(ParallelSum(branches), sums)
    assert torch.equal(both.values, one.values + other.values)
    assert both.terms == max(one.terms, other.terms) + 1
    assert magnitude(ParallelSum([*branches, nn.Softmax(dim=1)]), sums) is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "layers, branches: a sub-network is either a chain or branches; .* got none"),
        ({"layers": CHAINS[0], "branches": CHAINS}, "one of the two; got both"),
        ({"layers": []}, "layers: this is no chain of layers; expected pairs"),
        ({"layers": 3}, "layers: this is no chain of layers"),
        ({"layers": [(3, 4)]}, "the last one with None for the layer's filters"),
        (
            {"branches": [[(3, None)], [(1, None), (1, None)]]},
            r"branches\[1\]: this is no chain of layers",
        ),
        ({"branches": [[(3, None)], [(0, None)]]}, r"branches\[1\]\[0\]: a size is too small"),
        ({"branches": []}, r"no chain of kernels reaches .* at least \(3,\) .* got none"),
        ({"branches": [[(2, None)], [(1, 4), (2, None)]]}, r"got \(2,\) and \(2,\)"),
        ({"branches": [[(3, None)]] * 33}, "branches: too many branches; expected 32 at most"),
        ({"layers": [(2, 1), (2, None)]}, "so few channels between .* expected 3 or more; 4 alw"),
        ({"layers": [(3, 2.5), (1, None)]}, "channels: a size is not an integer"),
    ],
    ids=str,
)
def test_what_is_no_sub_network_is_refused(options: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        morph_subnet(nn.Conv1d(2, 2, 3), "", example=torch.ones(1, 2, 8), **options)
