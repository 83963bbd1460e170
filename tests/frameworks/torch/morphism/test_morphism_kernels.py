"""Larger kernels, two layers of one, and sub-networks: exact on integers, judged by SciPy."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from conv_cases import CASES, ConvCase
from hypothesis import given, settings
from hypothesis import strategies as st
from morphism_layers import LayerCase, assert_unchanged, filled, layers, numbers, state_of
from morphism_layers import train_a_step as trains
from torch import Tensor, nn

from convfc.errors import ArgumentError, GeometryError, UnsupportedLayer
from convfc.frameworks.torch.morphism.composition import Factors, factorised
from convfc.frameworks.torch.morphism.magnitude import Sums, magnitude
from convfc.frameworks.torch.read import weight_to_matrix
from convfc.methods.morphism import Morph, ParallelSum, morph_depth, morph_kernel, morph_subnet
from convfc.rounding import UNIT_ROUNDOFF, rounding_bound

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]


# A larger kernel


def exact_or_refused(
    make: Callable[..., Morph], layer: nn.Module, x: Tensor, **options: Any
) -> Morph | None:
    """Return a morph that is the same function on integers; None if PyTorch cannot pad as much."""
    try:
        morph = make(layer, "", example=x, **options)
    except ArgumentError as error:
        assert "cannot pad an axis by as much" in str(error)  # noqa: PT017
        return None
    assert torch.equal(morph.model(x), layer(x))
    assert morph.certificate.holds, str(morph)
    assert all(one.exact.identical for one in morph.certificate.layers)
    return morph


@given(case=layers(linear=False, dtype=torch.float64), more=st.tuples(*[st.integers(0, 3)] * 3))
def test_a_larger_kernel_is_the_same_function_on_integers(case: LayerCase, more: Any) -> None:
    layer = filled(case.layer, 3, whole=True)
    x = numbers(case.x.shape, 4, whole=True)
    state = state_of(layer)
    kernel = tuple(k + n for k, n in zip(layer.kernel_size, more, strict=False))
    morph = exact_or_refused(morph_kernel, layer, x, kernel_size=kernel)
    if morph is None:
        return
    assert_unchanged(layer, state)
    (conv,) = (part for part in morph.model.modules() if type(part) is type(layer))
    assert conv.kernel_size == tuple(conv.weight.shape[2:]) == kernel


@pytest.mark.parametrize(
    ("cls", "options", "kernel", "padding", "extra", "parts"),
    [
        (nn.Conv1d, {"padding": 1}, 5, (2,), (0,), 1),
        (nn.Conv1d, {"padding": 1, "dilation": 2}, 5, (3,), (0,), 1),
        (nn.Conv1d, {"padding": 1}, 4, (0,), (0,), 2),
        (nn.Conv1d, {"padding": 1, "padding_mode": "replicate"}, 4, (0,), (0,), 2),
        (nn.Conv1d, {"padding": "same"}, 4, "same", (0,), 1),
        (nn.Conv1d, {"padding": "same", "kernel_size": 2}, 3, "same", (0,), 1),
        (nn.Conv1d, {"padding": "same", "dilation": 2}, 4, (0,), (0,), 2),
        (nn.Conv1d, {"padding": "valid"}, 3, (0,), (0,), 1),
        (nn.Conv1d, {"padding": 1, "padding_mode": "circular", "stride": 2}, 7, (3,), (0,), 1),
        (nn.ConvTranspose1d, {"padding": 1}, 5, (2,), (0,), 1),
        (nn.ConvTranspose1d, {"padding": 1, "stride": 2}, 4, (2,), (1,), 1),
        (nn.ConvTranspose1d, {"padding": 1, "stride": 2, "output_padding": 1}, 4, (1,), (0,), 1),
        (nn.ConvTranspose1d, {"padding": 0}, 4, (0,), (0,), 2),
    ],
    ids=str,
)
def test_the_padding_grows_with_the_kernel(
    cls: Any, options: Any, kernel: int, padding: Any, extra: Any, parts: int
) -> None:
    layer, x = filled(cls(2, 3, **{"kernel_size": 3} | options)), numbers((2, 2, 12), 1).float()
    morph = morph_kernel(nn.Sequential(layer), "0", example=x, kernel_size=kernel)
    conv, *others = (part for part in morph.model[0].modules() if hasattr(part, "stride"))
    assert not others
    assert sum(not list(part.children()) for part in morph.model[0].modules()) == parts
    assert (conv.padding, conv.output_padding) == (padding, extra)
    assert morph.certificate.holds


def test_the_layer_stays_the_same_object_with_all_that_it_has() -> None:
    class Stem(nn.Conv2d):
        """A class of the user's."""

    layer = Stem(2, 3, 3, padding=1).to(memory_format=torch.channels_last)
    layer.note = "mine"
    layer.weight.requires_grad_(False)
    model = nn.Sequential(layer, nn.ReLU()).eval()
    morph = morph_kernel(model, "0", example=numbers((1, 2, 6, 6), 1).float(), kernel_size=(3, 5))
    new = morph.model[0]
    assert type(new) is Stem
    assert (new.note, new.training, new.weight.requires_grad) == ("mine", False, False)
    assert new.bias.requires_grad
    assert new.weight.is_contiguous(memory_format=torch.channels_last)
    assert (new.kernel_size, new.padding) == ((3, 5), (1, 2))


def test_what_is_no_larger_kernel_is_refused() -> None:
    x = torch.ones(1, 1, 5)
    with pytest.raises(UnsupportedLayer, match="an FC layer has no kernel"):
        morph_kernel(nn.Linear(5, 2), "", example=x, kernel_size=3)
    circle = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular")  # which goes round once
    assert morph_kernel(circle, "", example=x, kernel_size=11).certificate.holds
    with pytest.raises(GeometryError, match=r"'circular' cannot pad .* at most 5 .* got 6"):
        morph_kernel(circle, "", example=x, kernel_size=13)


# Two layers


def kernels_of(layer: nn.Module) -> np.ndarray:
    """The filters (f, c / groups, *kernel) of a layer, transposed or not."""
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.Linear):
        return weight.numpy()
    matrix = weight_to_matrix(weight, transposed=layer.transposed, groups=layer.groups)
    return matrix.unflatten(1, (-1, *weight.shape[2:])).numpy()


def judged(second: np.ndarray, first: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """SciPy's full convolution of two layers' kernels, summed over the channels between; and B."""

    convolve = functools.partial(scipy.signal.convolve, method="direct")

    def walk(second: np.ndarray, first: np.ndarray) -> np.ndarray:
        found: list[Any] = []
        for b, a in zip(np.split(second, groups), np.split(first, groups), strict=True):
            found += [[sum(map(convolve, row, a[:, c])) for c in range(a.shape[1])] for row in b]
        return np.array(found)

    return walk(second, first), walk(abs(second), abs(first))


def layers_in(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if hasattr(part, "weight") and part.weight.dim() > 1]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_composition_by_scipy_is_the_old_kernel(case: ConvCase) -> None:
    layer = filled(case.layer())
    kernels = (tuple(k + 2 for k in layer.kernel_size), (1,) * len(layer.kernel_size))
    if layer.padding_mode == "reflect":
        kernels = (layer.kernel_size, kernels[1])
    channels = 4 * max(case.args[:2])
    morph = morph_depth(layer, "", example=case.x(), kernel_sizes=kernels, channels=channels)
    first, second = layers_in(morph.model)
    whole, sums = judged(kernels_of(second), kernels_of(first), layer.groups)
    old = kernels_of(layer)
    border = [
        ((n - k) // 2, n - k - (n - k) // 2) for n, k in zip(whole.shape, old.shape, strict=True)
    ]
    wanted = np.pad(old, border)
    if layer.padding == "same" or any(high != low for low, high in border):
        # The odd element stands where the padding can be said: compare the taps only.
        assert whole.shape == wanted.shape
    terms = channels // layer.groups * int(np.prod(kernels[0]))
    assert (abs(whole - wanted) <= rounding_bound(sums, terms, "float64")).all()


@given(case=layers(), more=st.integers(0, 2), turned=st.booleans(), seed=st.integers(0, 9))
@settings(max_examples=40)
def test_every_layer_is_two(case: LayerCase, more: int, turned: bool, seed: int) -> None:
    layer, x = case
    state = state_of(layer)
    kernels: Any = None
    channels = None
    if not isinstance(layer, nn.Linear):
        own, one = layer.kernel_size, (1,) * len(layer.kernel_size)
        kernels = [tuple(k + more for k in own), one]
        channels = max(layer.out_channels, layer.in_channels)
        if turned:
            kernels = kernels[::-1]
    try:
        morph = morph_depth(
            layer, "", example=x, kernel_sizes=kernels, channels=channels, seed=seed
        )
    except ArgumentError as error:
        assert "padding_mode" in str(error)  # noqa: PT017 (of the few that have no room)
        assert layer.padding_mode in ("reflect", "circular")
        return
    assert morph.certificate.holds, str(morph)
    assert_unchanged(layer, state)
    first, second = layers_in(morph.model)
    if not more:  # both are dense: neither is the identity
        assert bool((first.weight != 0).all())
        assert bool((second.weight != 0).all())
    assert first.weight.dtype == second.weight.dtype == layer.weight.dtype


def test_stride_padding_output_padding_and_bias_stand_where_they_belong() -> None:
    conv = filled(nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=2, padding_mode="circular"))
    x = numbers((1, 2, 9, 9), 1).float()
    first, _, second = morph_depth(conv, "", example=x, kernel_sizes=(3, 3), channels=18).model
    assert (first.stride, first.padding, first.padding_mode) == ((1, 1), (3, 3), "circular")
    assert (second.stride, second.padding, second.padding_mode) == ((2, 2), (0, 0), "zeros")
    assert first.dilation == second.dilation == (2, 2)
    assert not first.bias.any()
    assert torch.equal(second.bias, conv.bias)
    up = filled(nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1))
    first, _, second = morph_depth(up, "", example=x, kernel_sizes=(1, 3)).model
    assert (first.stride, first.padding, first.output_padding) == ((2, 2), (0, 0), (1, 1))
    assert (second.stride, second.padding, second.output_padding) == ((1, 1), (1, 1), (0, 0))
    bare = morph_depth(nn.Linear(3, 2, bias=False), "", example=torch.ones(1, 3)).model
    assert bare[0].bias is bare[2].bias is None


def test_where_nothing_is_free_zeros_stay_zeros_and_no_channel_repeats_the_others() -> None:
    layer, x = filled(nn.Conv1d(2, 2, 1)).double(), numbers((1, 2, 8), 1)
    morph = morph_depth(layer, "", example=x, kernel_sizes=(1, 3))
    assert int((morph.model[2].weight != 0).sum()) == 4
    up = filled(nn.ConvTranspose1d(2, 1, 1, stride=2, bias=False)).double()
    assert morph_depth(up, "", example=x, kernel_sizes=(1, 2), channels=2).certificate.holds
    layer, x = filled(nn.Conv2d(2, 3, 3)).double(), numbers((1, 2, 8, 8), 1)
    first, _, second = morph_depth(layer, "", example=x, channels=8).model
    assert int(torch.linalg.matrix_rank(first.weight.flatten(1))) == 8
    assert int(torch.linalg.matrix_rank(second.weight.flatten(1))) == 3


@pytest.mark.parametrize("size", [(6, 5), (5, 6)], ids=str)
def test_the_solved_factor_fits_the_given_one_as_it_is_stored(size: tuple[int, int]) -> None:
    layer, x = filled(nn.Linear(*size, bias=False)), numbers((1, size[0]), 1).float()
    first, _, second = morph_depth(layer, "", example=x, channels=5).model
    pair, old = [second.weight.detach().double(), first.weight.detach().double()], layer.weight
    if size == (5, 6):  # transposed, the first layer is the one that was given
        pair, old = [pair[1].mT, pair[0].mT], old.mT
    given, stored = pair
    solved = torch.linalg.solve(given, old.detach().double())
    sums = torch.linalg.inv(given).abs() @ (given.abs() @ solved.abs())
    room = UNIT_ROUNDOFF["float32"] * solved.abs() + rounding_bound(sums, 5 * 5, "float64")
    assert bool(((stored - solved).abs() <= room).all())


def composed(second: Tensor, first: Tensor) -> Tensor:
    """The definition: G[t] is the sum over t1 + t2 = t of B[t2] A[t1]."""
    sizes = second.shape[1:-1], first.shape[1:-1]
    whole = second.new_zeros(len(second), *(a + b - 1 for a, b in zip(*sizes, strict=True)), 1)
    whole = whole.expand(*whole.shape[:-1], first.shape[-1]).clone()
    for pair in itertools.product(*(itertools.product(*map(range, size)) for size in sizes)):
        at = (slice(None), *map(sum, zip(*pair, strict=True)))
        whole[at] += second[(slice(None), *pair[0])] @ first[(slice(None), *pair[1])]
    return whole


def assert_composes_to(kernel: Tensor, found: Factors, terms: int) -> None:
    """Number by number, within its own bound."""
    sums = composed(found.second.abs(), found.first.abs())
    missing = (composed(found.second, found.first) - kernel).abs()
    assert bool((missing <= rounding_bound(sums, terms, "float64")).all())


@given(seed=st.integers(0, 999), sizes=st.tuples(*[st.integers(1, 3)] * 2))
def test_every_number_of_the_solved_factor_is_as_exact_as_its_size_asks_for(
    seed: int, sizes: Any
) -> None:
    c, more = sizes
    kernel = numbers((3, 2, c), seed)
    options: Any = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float64}
    found = factorised([kernel], ((1,), (2,)), (0,), c + more - 1, where="", **options)
    assert_composes_to(kernel, found, 2 * (c + more))


@pytest.mark.parametrize(
    ("kernels", "channels", "least", "enough"),
    [((2, 2), 6, 7, 12), ((2, 2), 5, 7, 12), (((2, 1), (2, 3)), 4, 5, 6)],
    ids=str,
)
def test_too_few_channels_are_refused_with_how_many_it_takes(
    kernels: Any, channels: int, least: int, enough: int
) -> None:
    conv, x = filled(nn.Conv2d(3, 4, 3)), numbers((1, 3, 8, 8), 1).float()
    options: Any = {"example": x, "kernel_sizes": kernels}
    with pytest.raises(ArgumentError, match=f"expected {least} or more; {enough} always do"):
        morph_depth(conv, "", channels=channels, **options)
    with pytest.raises(ArgumentError, match=r"a multiple of 2; got 3\. Remedy: give 4"):
        morph_depth(nn.Conv2d(2, 4, 3, groups=2), "", example=x[:, :2], channels=3)
    assert morph_depth(conv, "", channels=least, **options).certificate.holds
    assert morph_depth(conv, "", channels=enough, **options).certificate.holds


def test_numbers_that_suffice_may_not_make_the_rank_on_two_axes() -> None:
    # 2 polynomials in two variables meet in points: C |K2| = 18 unknowns for 16 equations, rank 14.
    generator = torch.Generator().manual_seed(0)
    kernel = numbers((1, 4, 4, 1), 1)
    options: Any = {"generator": generator, "dtype": torch.float64, "where": "layer"}
    with pytest.raises(ArgumentError, match="layer: so few channels"):
        factorised([kernel], ((2, 2), (3, 3)), (0, 0), 2, **options)
    found = factorised([kernel], ((2, 2), (3, 3)), (0, 0), 4, **options)
    assert_composes_to(kernel, found, 4 * 4)


def test_where_channels_are_scarce_a_smaller_kernel_inside_is_solved_for() -> None:
    conv, x = filled(nn.Conv2d(3, 4, 3, padding=1)), numbers((2, 3, 8, 8), 1).float()
    morph = morph_depth(conv, "", example=x, kernel_sizes=(3, 3))
    assert morph.certificate.holds
    assert "of which 3×3 and 1×1 are not zero" in morph.what
    first, _, second = morph.model
    assert (first.weight.shape, second.weight.shape) == ((4, 3, 3, 3), (4, 4, 3, 3))
    assert int((second.weight != 0).sum()) == 4 * 4
    changed = trains(morph.model, x)
    assert all(changed.values()), changed
    assert bool((second.weight != 0).all())  # the zeros around have gradients


@pytest.mark.parametrize("activation", ["prelu", None, nn.SiLU()], ids=repr)
def test_training_moves_every_parameter(activation: Any) -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    x = numbers((4, 2, 9), 1).float()
    for name in ("0", "3"):
        morph = morph_depth(model, name, example=x, activation=activation)
        assert morph.certificate.holds, str(morph)
        model = morph.model
    model = morph_kernel(model, "0.0", example=x, kernel_size=5).model
    changed = trains(model, x)
    assert all(changed.values()), changed
    assert bool((model[0][0].weight != 0).all())  # the new taps, too


# Sub-networks


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
    morph = exact_or_refused(morph_subnet, layer, x, branches=branches)
    if morph is None:
        return
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
    morph = morph_subnet(layer, "", example=x, layers=[(1, 6), (3, 18), (3, None)])
    kinds = [type(part) for part in morph.model]
    assert kinds == [nn.Conv2d, nn.PReLU, nn.Conv2d, nn.PReLU, nn.Conv2d]
    assert [part.out_channels for part in morph.model[::2]] == [6, 18, 6]
    assert morph.certificate.holds, str(morph)
    assert all(trains(morph.model, x).values())
    linear, chain = filled(nn.Linear(3, 4)), [(1, 5), ((), 4), (1, None)]
    morph = morph_subnet(linear, "", example=x[:1, 0, :3, 0], layers=chain, activation=None)
    assert [type(part) for part in morph.model] == [nn.Linear] * 3
    assert morph.certificate.holds


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
        ({"layers": CHAINS[0], "branches": CHAINS}, "one of the two; got both"),
        ({"layers": [(3, 4)]}, "the last one with None for the layer's filters"),
        ({"branches": [[(2, None)], [(1, 4), (2, None)]]}, r"got \(2,\) and \(2,\)"),
    ],
    ids=str,
)
def test_what_is_no_sub_network_is_refused(options: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        morph_subnet(nn.Conv1d(2, 2, 3), "", example=torch.ones(1, 2, 8), **options)
